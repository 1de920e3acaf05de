/* The commonest calls of a decode step - attention of single queries, a few rows times weights, norms - put
 * together without Python.
 *
 * A step makes one, seven and two such calls a layer. Reading addresses, shapes and strides of a dozen tensors takes
 * Python as long as the attention of some hundred tokens. Torch offers what they are through DLPack's table of C functions
 * (`torch.Tensor.__dlpack_c_exchange_api__`, from torch 2.10 on): a stable interface, of which the parts that are used
 * here are declared below after dlpack.h 1.2 (https://dmlc.github.io/dlpack). fast_call.py says when this is not to be had.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "calls.h"

enum { CPU = 1, INT = 0, UINT = 1, FLOAT = 2, BFLOAT = 4 }; /* device type; type codes */
enum { PAGE = 16, MOST_DIM = 512, SHARES = 4 };             /* key_index.inc, common.inc, struct Tail in kernels.cpp */

typedef struct {
  void* data;
  struct { int32_t type, id; } device;
  int32_t ndim;
  struct { uint8_t code, bits; uint16_t lanes; } dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} Tensor;

typedef struct {
  struct { uint32_t major, minor; } version;
  void* previous;
  void *allocate, *from_object, *to_object; /* not used here */
  int (*view)(void* object, Tensor* out);   /* 0, or -1 with a Python error; valid while the object lives */
  void* stream;
} Exchange;

static const Exchange* exchange;
static int64_t (*run_decode)(const struct DecodeCall*);
static int64_t (*run_product)(const struct ProductCall*);
static int64_t (*run_norm)(const struct NormCall*);
static PyObject *empty_like, *new_empty, *sum, *zero;
static PyTypeObject *attended, *tensor_type, *parameter_type; /* attended: a named tuple of output and kept */

/* bind(exchange: the capsule, decode, product, norm: addresses of gs_decode, gs_product and gs_norm, empty_like, tensor,
 * parameter: torch's, attended: types.Attended) -> whether this table can be used */
static PyObject* bind(PyObject* self, PyObject* args) {
  PyObject *capsule, *allocate, *tensor, *parameter, *result;
  unsigned long long decode_address, product_address, norm_address;
  if (!PyArg_ParseTuple(args, "OKKKOO!O!O!", &capsule, &decode_address, &product_address, &norm_address, &allocate,
                        &PyType_Type, &tensor, &PyType_Type, &parameter, &PyType_Type, &result))
    return NULL;
  if (!PyType_IsSubtype((PyTypeObject*)result, &PyTuple_Type)) return PyErr_Format(PyExc_TypeError, "attended is a tuple");
  const Exchange* found = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
  if (found == NULL) return NULL;
  if (found->version.major != 1 || found->view == NULL) Py_RETURN_FALSE;
  exchange = found;
  Py_XSETREF(new_empty, PyUnicode_InternFromString("new_empty"));
  Py_XSETREF(sum, PyUnicode_InternFromString("sum"));
  Py_XSETREF(zero, PyLong_FromLong(0));
  if (new_empty == NULL || sum == NULL || zero == NULL) return NULL;
  run_decode = (int64_t(*)(const struct DecodeCall*))(uintptr_t)decode_address;
  run_product = (int64_t(*)(const struct ProductCall*))(uintptr_t)product_address;
  run_norm = (int64_t(*)(const struct NormCall*))(uintptr_t)norm_address;
  Py_INCREF(allocate);
  Py_XSETREF(empty_like, allocate);
  Py_INCREF(tensor);
  Py_XSETREF(tensor_type, (PyTypeObject*)tensor);
  Py_INCREF(parameter);
  Py_XSETREF(parameter_type, (PyTypeObject*)parameter);
  Py_INCREF(result);
  Py_XSETREF(attended, (PyTypeObject*)result);
  Py_RETURN_TRUE;
}

static void* start_of(const Tensor* tensor) { return (char*)tensor->data + tensor->byte_offset; }

/* The place of a dtype in library.py's DTYPES; -1 for others. */
static int64_t place_of(const Tensor* tensor) {
  if (tensor->dtype.code == FLOAT && tensor->dtype.bits == 32) return 0;
  if (tensor->dtype.code == BFLOAT) return 1;
  if (tensor->dtype.code == FLOAT && tensor->dtype.bits == 16) return 2;
  return -1;
}

/* Whether `object` is a plain tensor in memory of the CPU, and then what it is. Torch cannot say it of tensors without
 * memory; a null pointer is what it says of those whose memory was given back, and of classes that keep theirs elsewhere. */
static int seen(PyObject* object, Tensor* out) {
  if (Py_TYPE(object) != tensor_type && Py_TYPE(object) != parameter_type) return 0;
  if (exchange->view(object, out)) return PyErr_Clear(), 0;
  return out->device.type == CPU && out->data != NULL;
}

static int contiguous(const Tensor* tensor) {
  int64_t step = 1;
  for (int axis = tensor->ndim - 1; axis >= 0; --axis) {
    if (tensor->shape[axis] != 1 && tensor->strides[axis] != step) return 0;
    step *= tensor->shape[axis];
  }
  return 1;
}

/* Whether `object` is contiguous, of this dtype and of these sizes, `[a]`, `[a, b]` or `[a, b, c]` (-1 for no axis), and
 * then its address. */
static int holds(PyObject* object, int code, int bits, int64_t a, int64_t b, int64_t c, const void** out) {
  Tensor tensor;
  const int64_t sizes[] = {a, b, c};
  const int axes = b < 0 ? 1 : c < 0 ? 2 : 3;
  if (!seen(object, &tensor) || tensor.dtype.code != code || tensor.dtype.bits != bits || tensor.ndim != axes) return 0;
  for (int axis = 0; axis < axes; ++axis)
    if (tensor.shape[axis] != sizes[axis]) return 0;
  *out = start_of(&tensor);
  return contiguous(&tensor);
}

/* A new tensor like `like`, and its address. */
static PyObject* allocated(PyObject* like, Tensor* out) {
  PyObject* made = PyObject_CallOneArg(empty_like, like);
  if (made != NULL && exchange->view(made, out)) Py_CLEAR(made);
  return made;
}

enum { QUERY, KEY, VALUE, BUDGETS, TAILS, SELECTORS, FIRST, VALUE_SUM, SINK, LOW, HIGH, CODES, MEANS, BITS, THREADS, SCALING, SOFTCAP, ARGUMENTS };

/* A new tensor `[batch, heads]`, otherwise like `like`, and its address. */
static PyObject* allocated_counts(PyObject* like, int64_t batch, int64_t heads, Tensor* out) {
  PyObject* shape = Py_BuildValue("(LL)", (long long)batch, (long long)heads);
  PyObject* made = shape == NULL ? NULL : PyObject_CallMethodOneArg(like, new_empty, shape);
  Py_XDECREF(shape);
  if (made != NULL && exchange->view(made, out)) Py_CLEAR(made);
  return made;
}

/* The complete pages of the row that has most of them. */
static int64_t complete_pages(const struct DecodeCall* call) {
  int64_t least = call->first == NULL ? 0 : call->keys;
  for (int64_t row = 0; call->first != NULL && row < call->batch; ++row)
    if (call->first[row] < least) least = call->first[row];
  return (call->keys - least) / PAGE;
}

/* Whether there are mean values of the complete pages, in the layout of ops/value_means.py; then `call` has them. */
static int read_means(PyObject* const* args, struct DecodeCall* call) {
  Tensor means;
  if (!seen(args[MEANS], &means) || means.ndim != 4 || place_of(&means) != 2 || means.shape[0] != call->batch ||
      means.shape[1] != call->kv_heads || means.shape[2] < complete_pages(call) || means.shape[3] != call->value_dim ||
      means.strides[3] != 1)
    return 0;
  call->page_means = start_of(&means);
  call->mean_batch = means.strides[0], call->mean_head = means.strides[1], call->mean_page = means.strides[2];
  return 1;
}

/* Whether the index covers the complete pages of the keys in the layout of ops/key_index.py; then `call` has it, or nothing
 * where no page is complete yet. */
static int read_index(PyObject* const* args, struct DecodeCall* call) {
  Tensor low, high, codes;
  call->bits = PyLong_AsLongLong(args[BITS]);
  if (PyErr_Occurred()) return 0;
  const int64_t pages = complete_pages(call);
  if (pages < 1) return 1;
  if (!seen(args[LOW], &low) || !seen(args[HIGH], &high) || !seen(args[CODES], &codes) || low.ndim != 4 || high.ndim != 4 ||
      codes.ndim != 6 || place_of(&low) != 2 || place_of(&high) != 2 || codes.dtype.code != UINT || codes.dtype.bits != 8)
    return 0;
  const int64_t width = low.shape[3], words = width * call->bits / 32;
  if ((call->bits != 4 && call->bits != 8) || width < call->dim || width > MOST_DIM || width % 16) return 0;
  for (int axis = 0; axis < 4; ++axis)
    if (low.shape[axis] != high.shape[axis] || low.strides[axis] != high.strides[axis]) return 0;
  if (low.shape[0] != call->batch || low.shape[1] != call->kv_heads || low.shape[2] < pages || low.strides[3] != 1 ||
      low.strides[2] != width || codes.shape[0] != call->batch || codes.shape[1] != call->kv_heads || codes.shape[2] < pages ||
      codes.shape[3] != words || codes.shape[4] != PAGE || codes.shape[5] != 4 || codes.strides[5] != 1 ||
      codes.strides[4] != 4 || codes.strides[3] != 4 * PAGE || codes.strides[2] != words * 4 * PAGE)
    return 0;
  call->low = start_of(&low), call->high = start_of(&high), call->codes = start_of(&codes);
  call->bound_batch = low.strides[0], call->bound_head = low.strides[1], call->width = width;
  call->code_batch = codes.strides[0], call->code_head = codes.strides[1];
  return 1;
}

/* decode(query, key, value, budgets, tails, selectors, first, value_sum, sink, low, high, codes, means, bits, threads,
 * scaling, softcap) -> Attended, or None where the tensors are of another kind than this is for. Meaning as in decode.py. */
static PyObject* decode(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != ARGUMENTS) return PyErr_Format(PyExc_TypeError, "decode takes %d arguments", ARGUMENTS);
  struct DecodeCall call = {0};
  Tensor q, k, v, out, kept;
  if (!seen(args[QUERY], &q) || !seen(args[KEY], &k) || !seen(args[VALUE], &v)) Py_RETURN_NONE;
  const int64_t dtype = place_of(&q);
  if (dtype < 0 || place_of(&k) != dtype || place_of(&v) != dtype || q.ndim != 4 || k.ndim != 4 || v.ndim != 4 ||
      q.shape[2] != 1 || q.strides[3] != 1 || k.strides[3] != 1 || v.strides[3] != 1 || k.shape[3] != q.shape[3] ||
      v.shape[3] != q.shape[3] || k.shape[0] != q.shape[0] || v.shape[0] != q.shape[0] || k.shape[1] != v.shape[1] ||
      k.shape[2] != v.shape[2])
    Py_RETURN_NONE;
  call.q = start_of(&q), call.k = start_of(&k), call.v = start_of(&v);
  const int64_t batch = call.batch = q.shape[0], heads = call.heads = q.shape[1], kv_heads = call.kv_heads = v.shape[1];
  call.keys = v.shape[2], call.dim = q.shape[3], call.value_dim = v.shape[3];
  int64_t rows = 1; /* of budgets */
  if (!holds(args[BUDGETS], INT, 64, rows, heads, -1, (const void**)&call.n_keep)) {
    rows = batch;
    if (!holds(args[BUDGETS], INT, 64, rows, heads, -1, (const void**)&call.n_keep)) Py_RETURN_NONE;
  }
  call.n_batch = rows == 1 ? 0 : heads;
  if (!holds(args[TAILS], FLOAT, 32, heads, SHARES, -1, (const void**)&call.tails) ||
      !holds(args[SELECTORS], INT, 64, heads, -1, -1, (const void**)&call.selectors) ||
      (args[FIRST] != Py_None && !holds(args[FIRST], INT, 64, batch, -1, -1, (const void**)&call.first)) ||
      (args[VALUE_SUM] != Py_None &&
       !holds(args[VALUE_SUM], FLOAT, 64, batch, kv_heads, v.shape[3], (const void**)&call.value_sum)) ||
      (args[SINK] != Py_None && !holds(args[SINK], FLOAT, 32, heads, -1, -1, (const void**)&call.sink)))
    Py_RETURN_NONE;
  if (args[LOW] != Py_None && !read_index(args, &call)) {
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
  }
  if (args[MEANS] != Py_None && !read_means(args, &call)) Py_RETURN_NONE;
  call.q_batch = q.strides[0], call.q_head = q.strides[1];
  call.k_batch = k.strides[0], call.k_head = k.strides[1], call.k_row = k.strides[2];
  call.v_batch = v.strides[0], call.v_head = v.strides[1], call.v_row = v.strides[2];
  call.dtype = dtype, call.threads = PyLong_AsLongLong(args[THREADS]);
  call.scaling = PyFloat_AsDouble(args[SCALING]), call.softcap = PyFloat_AsDouble(args[SOFTCAP]);
  if (PyErr_Occurred()) return NULL;
  PyObject* output = allocated(args[QUERY], &out);
  if (output == NULL) return NULL;
  if (!contiguous(&out)) { /* laid out as the query, which was not contiguous */
    Py_DECREF(output);
    Py_RETURN_NONE;
  }
  PyObject* counts = batch == 1 ? allocated(args[SELECTORS], &kept) : allocated_counts(args[SELECTORS], batch, heads, &kept);
  if (counts == NULL) return Py_DECREF(output), NULL;
  call.out = start_of(&out), call.kept = start_of(&kept);
  int64_t unknown;
  Py_BEGIN_ALLOW_THREADS
  unknown = run_decode(&call);
  Py_END_ALLOW_THREADS
  if (!unknown && batch > 1) Py_SETREF(counts, PyObject_CallMethodOneArg(counts, sum, zero));
  PyObject* result = unknown || counts == NULL ? NULL : attended->tp_alloc(attended, 2);
  if (result == NULL) {
    Py_DECREF(output);
    Py_XDECREF(counts);
    return unknown ? Py_NewRef(Py_None) : NULL;
  }
  PyTuple_SET_ITEM(result, 0, output); /* the tuple's from here on */
  PyTuple_SET_ITEM(result, 1, counts);
  return result;
}

/* A new contiguous tensor of the shape of `rows` but for its last axis, which has `columns`; otherwise like `rows`. */
static PyObject* allocated_rows(PyObject* rows, const Tensor* x, int64_t columns, Tensor* out) {
  PyObject *made = NULL, *shape = PyTuple_New(x->ndim);
  for (int axis = 0; shape != NULL && axis < x->ndim; ++axis) {
    PyObject* size = PyLong_FromLongLong(axis == x->ndim - 1 ? columns : x->shape[axis]);
    if (size == NULL) Py_CLEAR(shape);
    else PyTuple_SET_ITEM(shape, axis, size);
  }
  if (shape != NULL) made = PyObject_CallMethodOneArg(rows, new_empty, shape);
  Py_XDECREF(shape);
  if (made != NULL && exchange->view(made, out)) Py_CLEAR(made);
  return made;
}

/* product(rows, weight, bias, most_rows, threads) -> Tensor, or None where the tensors are of another kind than this is for.
 * Meaning as in linear.py. */
static PyObject* product(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != 5) return PyErr_Format(PyExc_TypeError, "product takes 5 arguments");
  struct ProductCall call = {0};
  Tensor x, weight, bias, out;
  const int64_t most_rows = PyLong_AsLongLong(args[3]);
  call.threads = PyLong_AsLongLong(args[4]);
  if (PyErr_Occurred()) return NULL;
  if (!seen(args[0], &x) || !seen(args[1], &weight)) Py_RETURN_NONE;
  call.dtype = place_of(&x);
  if (call.dtype < 0 || place_of(&weight) != call.dtype || x.ndim < 1 || weight.ndim != 2 ||
      weight.strides[1] != 1 || x.shape[x.ndim - 1] != weight.shape[1] || !contiguous(&x))
    Py_RETURN_NONE;
  call.rows = 1, call.width = weight.shape[1], call.columns = weight.shape[0], call.weight_row = weight.strides[0];
  for (int axis = 0; axis < x.ndim - 1; ++axis) call.rows *= x.shape[axis];
  if (call.rows < 1 || call.rows > most_rows || call.width < 1 || call.columns < 1) Py_RETURN_NONE;
  if (args[2] != Py_None) {
    if (!seen(args[2], &bias) || place_of(&bias) != call.dtype || bias.ndim != 1 || bias.shape[0] != call.columns ||
        !contiguous(&bias))
      Py_RETURN_NONE;
    call.bias = start_of(&bias);
  }
  PyObject* output = allocated_rows(args[0], &x, call.columns, &out);
  if (output == NULL) return NULL;
  call.x = start_of(&x), call.weight = start_of(&weight), call.out = start_of(&out);
  int64_t unknown;
  Py_BEGIN_ALLOW_THREADS
  unknown = run_product(&call);
  Py_END_ALLOW_THREADS
  if (!unknown) return output;
  Py_DECREF(output);
  Py_RETURN_NONE;
}

/* norm(rows, weight, eps, kind, most) -> Tensor, or None where the tensors are of another kind than this is for, or more
 * than `most` numbers. Meaning as in rms_norm.py. */
static PyObject* norm(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != 5) return PyErr_Format(PyExc_TypeError, "norm takes 5 arguments");
  struct NormCall call = {0};
  Tensor x, weight, out;
  call.eps = PyFloat_AsDouble(args[2]), call.kind = PyLong_AsLongLong(args[3]);
  const int64_t most = PyLong_AsLongLong(args[4]);
  if (PyErr_Occurred()) return NULL;
  if (!seen(args[0], &x) || !seen(args[1], &weight)) Py_RETURN_NONE;
  call.dtype = place_of(&x);
  if (call.dtype < 0 || place_of(&weight) != call.dtype || x.ndim < 1 || weight.ndim != 1 ||
      x.shape[x.ndim - 1] != weight.shape[0] || !contiguous(&x) || !contiguous(&weight))
    Py_RETURN_NONE;
  call.rows = 1, call.width = weight.shape[0];
  for (int axis = 0; axis < x.ndim - 1; ++axis) call.rows *= x.shape[axis];
  if (call.rows < 1 || call.width < 1 || call.rows * call.width > most) Py_RETURN_NONE;
  PyObject* output = allocated(args[0], &out);
  if (output == NULL) return NULL;
  call.x = start_of(&x), call.weight = start_of(&weight), call.out = start_of(&out);
  if (!run_norm(&call)) return output;
  Py_DECREF(output);
  Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"bind", bind, METH_VARARGS, NULL},
    {"decode", (PyCFunction)(void (*)(void))decode, METH_FASTCALL, NULL},
    {"product", (PyCFunction)(void (*)(void))product, METH_FASTCALL, NULL},
    {"norm", (PyCFunction)(void (*)(void))norm, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_fast_call", NULL, -1, methods, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__fast_call(void) { return PyModule_Create(&module); }
