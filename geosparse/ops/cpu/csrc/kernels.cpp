// CPU kernels behind a C interface on plain pointers; no Python, no torch. Loaded by cpu/__init__.py through ctypes.
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__FLT16_MANT_DIG__) && defined(__x86_64__)
#define GS_FP16
using fp16 = _Float16;
#endif

struct bf16 {
  uint16_t bits;
};
// fp16 as it lies in memory, for compilers without it.
struct half {
  uint16_t bits;
};

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define GS_X86
#if __GNUC__ >= 10
#define GS_PAIRS  // the compiler knows dot products of bf16
#endif
#include <immintrin.h>
#endif

#include "calls.h"
#include "thread_pool.inc"

// What becomes of the mass that is not kept, in shares; ops/tails.py has their meaning.
struct Tail {
  float mean, kept, weighted, pages;
  // A softmax over the kept tokens, which need not know what the others weigh.
  bool renormalizes() const { return mean == 0.0f && kept == 0.0f && weighted == 1.0f && pages == 0.0f; }
};
inline Tail tail_of(const float* tails, int64_t head) {
  const float* shares = tails + 4 * head;
  return {shares[0], shares[1], shares[2], shares[3]};
}
enum Selector { TOPN = 0, LOWBIT = 1, PAGED = 2, PAGED_LOWBIT = 3, SINK_RECENT = 4 };
// Norms whose quotient is rounded before it is multiplied, that round once, and once with 1 added to the weights.
enum Norm { NORM_TWICE = 0, NORM_ONCE = 1, NORM_SHIFTED = 2 };
// What is wrong with a call, or 0; library.py has a sentence for each.
enum Fault { FINE = 0, UNKNOWN_DTYPE = 1, WRONG_SIZES = 2, WRONG_BUDGET = 3, WRONG_WORD = 4, WRONG_FIRST = 5, WRONG_PLACE = 6 };
constexpr long SINKS = 4;       // ops/selectors/sink_recent.py
constexpr long OVERSAMPLE = 4;  // ops/selectors/paged_lowbit.py

// Mirrored by the ctypes structures in library.py: 8-byte fields only. Strides in elements, mask in bytes.
struct WeighCall {
  const float* packed;       // [B, Hkv, panels, D, 32]: keys to score, fp32, padded with zeros; or null: `scores` are given
  float* scores;             // [B, Hq, T, S], contiguous, coded ones for LOWBIT; becomes weights where v is null
  const float *q, *k;        // [B, Hq, T, D], [B, Hkv, S, D]: q for own scores, both for LOWBIT and SINK_RECENT, else null
  const float* v;            // [B, Hkv, S, Dv], or null: the caller multiplies
  float* out;                // [B, Hq, T, Dv], where v is given
  float* missing;            // [B, Hq, T], mass left for the mean of the visible values
  int64_t* kept;             // [B, Hq, T]
  const int64_t* n_keep;     // [B, Hq, T] by strides
  const float* tails;        // [Hq, 4], of struct Tail; they give to pages only where the caller multiplies
  const int64_t* selectors;  // [Hq], TOPN, LOWBIT or SINK_RECENT
  const int64_t* first;      // [B], the first visible key, where there is no mask
  const uint8_t* mask;       // [B, T, S] by strides, or null: causal, the last query at the last key
  const float* sink;         // [Hq] or null
  int64_t batch, heads, kv_heads, queries, keys, dim, value_dim;
  int64_t q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head;
  int64_t mask_batch, mask_row, n_batch, n_head, n_row, window, threads;
  double scaling, softcap;
};

struct SeparateCall {
  const float *square, *along, *size;  // [rows, tokens]; square is infinite where a token is not visible
  const float* length;                 // [rows], of the centre
  const int64_t* picked;               // [rows, budget]
  int64_t *most, *clear, *inversions, *outer, *inner;  // [rows]
  int64_t rows, tokens, budget, cosine;
  double step, floor;
};

struct ReadCall {
  const float* table;   // [*, width]
  const int64_t* rows;  // [count]
  double* sums;         // one for every 256 rows
  int64_t count, width, threads, length;  // length: rows of the table
};

// 0 plain, 1 AVX2, 2 AVX-512, 3 AVX-512 with dot products of bf16: the kernels of 2, which ask for it where it helps.
static int best_isa() {
#ifdef GS_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
#ifdef GS_PAIRS
    return __builtin_cpu_supports("avx512bf16") ? 3 : 2;
#else
    return 2;
#endif
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) return 1;
#endif
  return 0;
}

static int chosen_isa = best_isa();

#define GS_KERNELS "per_isa.inc"
#define GS_LEVEL 0
namespace plain {
#include GS_KERNELS
}
#undef GS_LEVEL

#ifdef GS_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2")
#define GS_LEVEL 1
namespace avx2 {
#include GS_KERNELS
}
#undef GS_LEVEL
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define GS_LEVEL 2
namespace avx512 {
#include GS_KERNELS
}
#undef GS_LEVEL
#pragma GCC pop_options
#endif

#include "validation.inc"

// The kernel `name` of the instruction set in use, once the call is one that it can follow: 0, else of enum Fault.
#ifdef GS_X86
#define GS_RUN(name, call)                                   \
  const Fault fault = fault_of(call);                        \
  if (fault != FINE) return fault;                           \
  if (chosen_isa >= 2) return avx512::name(call);            \
  if (chosen_isa == 1) return avx2::name(call);              \
  return plain::name(call)
#else
#define GS_RUN(name, call)            \
  const Fault fault = fault_of(call); \
  if (fault != FINE) return fault;    \
  return plain::name(call)
#endif

extern "C" {

int64_t gs_abi() { return 13; }

// As best_isa says it.
int64_t gs_isa() { return chosen_isa; }

// For tests: run with a lesser instruction set. Returns the one in use.
int64_t gs_set_isa(int64_t isa) {
  chosen_isa = static_cast<int>(std::min<int64_t>(isa < 0 ? best_isa() : isa, best_isa()));
  return chosen_isa;
}

// One query per batch row over a cache.
int64_t gs_decode(const DecodeCall* call) { GS_RUN(decode, *call); }

// A few rows times weights.
int64_t gs_product(const ProductCall* call) { GS_RUN(product, *call); }

// Root mean square norms of a few rows.
int64_t gs_norm(const NormCall* call) { GS_RUN(norm, *call); }

// Rows of a table, added up.
int64_t gs_read_rows(const ReadCall* call) { GS_RUN(read_rows, *call); }

// Many queries over packed keys.
int64_t gs_prefill(const WeighCall* call) { GS_RUN(prefill, *call); }

// Scores of many queries -> the kept tokens' weighted values, or attention weights in place.
int64_t gs_weigh(const WeighCall* call) { GS_RUN(weigh, *call); }

// Which unselected contributions lie as near to the centre of a set as the selected ones, row by row.
int64_t gs_separate(const SeparateCall* call) { GS_RUN(separate, *call); }
}
