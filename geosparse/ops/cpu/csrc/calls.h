// What fast_call.c tells the kernels, and decode.py and linear.py too, in this order. C and C++; 8-byte fields only.
#pragma once
#include <stdint.h>

// `gs_decode`: one query per batch row over a cache. Strides in elements, mask in bytes.
struct DecodeCall {
  const void *q, *k, *v;
  void* out;                 // [B, Hq, Dv], contiguous
  const int64_t* n_keep;     // [B or 1, Hq]
  const float* tails;        // [Hq, 4], of struct Tail
  const int64_t* selectors;  // [Hq], of enum Selector
  const int64_t* first;      // [B], the first visible key, or null: 0
  const uint8_t* mask;       // [B, S] or null; only without `first` and index
  const double* value_sum;   // [B, Hkv, Dv], over visible tokens, or null: summed here when the tail needs it
  const float* sink;         // [Hq] or null
  const uint16_t *low, *high;  // [B, Hkv, P, width] fp16, or null: no selector reads the index
  const uint8_t* codes;      // [B, Hkv, P, width * bits / 8 * 16]
  const uint16_t* page_means;  // [B, Hkv, P, Dv] fp16 of complete pages, or null: there are none, or no tail gives to them
  int64_t* kept;             // [B, Hq]
  int64_t batch, heads, kv_heads, keys, dim, value_dim;
  int64_t q_batch, q_head, k_batch, k_head, k_row, v_batch, v_head, v_row, mask_batch, n_batch;
  int64_t bound_batch, bound_head, code_batch, code_head, width, bits;
  int64_t mean_batch, mean_head, mean_page;
  int64_t dtype, threads;
  double scaling, softcap;
};

// `gs_product`: a few rows times weights.
struct ProductCall {
  const void *x, *weight, *bias;  // [rows, width], [columns, width], [columns] or null
  void* out;                      // [rows, columns]
  int64_t rows, width, columns, weight_row, dtype, threads;
};

// `gs_norm`: a few rows, each divided by its root mean square and times weights.
struct NormCall {
  const void *x, *weight;  // [rows, width], [width]
  void* out;               // [rows, width]
  int64_t rows, width, kind, dtype;  // kind: of enum Norm
  double eps;
};
