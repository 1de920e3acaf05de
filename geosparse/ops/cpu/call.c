/* The commonest calls of a decode step - attention of one row that sees every key, a few rows times weights, norms - put
 * together without Python.
 *
 * A step makes one, seven and two such calls a layer. Reading addresses, shapes and strides of a dozen tensors takes
 * Python as long as the attention of some hundred tokens. Torch offers what they are through DLPack's table of C functions
 * (`torch.Tensor.__dlpack_c_exchange_api__`, from torch 2.10 on): a stable interface, of which the parts that are used
 * here are declared below after dlpack.h 1.2 (https://dmlc.github.io/dlpack). direct.py says when this is not to be had.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "calls.h"

enum { CPU = 1, FLOAT = 2, BFLOAT = 4 }; /* device type; type codes */

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
static PyObject *empty, *empty_like, *dtype_name, *dtype_keyword;
static PyTypeObject* attended; /* a named tuple of output and kept */

/* bind(exchange: the capsule, decode, product, norm: addresses of gs_decode, gs_product and gs_norm, empty, empty_like:
 * torch's, attended: types.Attended) -> whether this table can be used */
static PyObject* bind(PyObject* self, PyObject* args) {
  PyObject *capsule, *make, *allocate, *result;
  unsigned long long decode_address, product_address, norm_address;
  if (!PyArg_ParseTuple(args, "OKKKOOO!", &capsule, &decode_address, &product_address, &norm_address, &make, &allocate,
                        &PyType_Type, &result))
    return NULL;
  if (!PyType_IsSubtype((PyTypeObject*)result, &PyTuple_Type)) return PyErr_Format(PyExc_TypeError, "attended is a tuple");
  const Exchange* found = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
  if (found == NULL) return NULL;
  if (found->version.major != 1 || found->view == NULL) Py_RETURN_FALSE;
  exchange = found;
  Py_XSETREF(dtype_name, PyUnicode_InternFromString("dtype"));
  Py_XSETREF(dtype_keyword, dtype_name == NULL ? NULL : PyTuple_Pack(1, dtype_name));
  if (dtype_keyword == NULL) return NULL;
  run_decode = (int64_t(*)(const struct DecodeCall*))(uintptr_t)decode_address;
  run_product = (int64_t(*)(const struct ProductCall*))(uintptr_t)product_address;
  run_norm = (int64_t(*)(const struct NormCall*))(uintptr_t)norm_address;
  Py_INCREF(make);
  Py_XSETREF(empty, make);
  Py_INCREF(allocate);
  Py_XSETREF(empty_like, allocate);
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

/* The address of a contiguous tensor; null for None; -1 where torch says no. */
static int address_of(PyObject* object, const void** out) {
  Tensor tensor;
  *out = NULL;
  if (object == Py_None) return 0;
  if (exchange->view(object, &tensor)) return -1;
  *out = start_of(&tensor);
  return 0;
}

/* What `rows` and `weight` are; whether torch can say it, which it cannot of tensors without memory. */
static int both(PyObject* rows, PyObject* weight, Tensor* x, Tensor* w) {
  if (!exchange->view(rows, x) && !exchange->view(weight, w)) return 1;
  PyErr_Clear();
  return 0;
}

/* A new tensor like `like`, and its address. */
static PyObject* allocated(PyObject* like, Tensor* out) {
  PyObject* made = PyObject_CallOneArg(empty_like, like);
  if (made != NULL && exchange->view(made, out)) Py_CLEAR(made);
  return made;
}

enum { QUERY, KEY, VALUE, BUDGETS, TAILS, SELECTORS, VALUE_SUM, SINK, LOW, HIGH, CODES, BITS, THREADS, SCALING, SOFTCAP, ARGUMENTS };

/* decode(query, key, value, budgets, tails, selectors, value_sum, sink, low, high, codes, bits, threads, scaling, softcap)
 * -> Attended, or None where the tensors are of another kind than this is for. Meaning as in decode.py. */
static PyObject* decode(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != ARGUMENTS) return PyErr_Format(PyExc_TypeError, "decode takes %d arguments", ARGUMENTS);
  struct DecodeCall call = {0};
  Tensor q, k, v, low, codes, out, kept;
  if (exchange->view(args[QUERY], &q) || exchange->view(args[KEY], &k) || exchange->view(args[VALUE], &v)) return NULL;
  const int64_t dtype = place_of(&q);
  if (dtype < 0 || place_of(&k) != dtype || place_of(&v) != dtype || q.device.type != CPU || k.device.type != CPU ||
      v.device.type != CPU || q.ndim != 4 || k.ndim != 4 || v.ndim != 4 || q.shape[0] != 1 || q.shape[2] != 1 ||
      q.strides[3] != 1 || k.strides[3] != 1 || v.strides[3] != 1 || v.shape[3] != q.shape[3])
    Py_RETURN_NONE;
  if (args[LOW] != Py_None) {
    if (exchange->view(args[LOW], &low) || exchange->view(args[CODES], &codes)) return NULL;
    if (low.ndim == 4 && codes.ndim == 6) { /* otherwise no page is complete yet */
      if (address_of(args[HIGH], (const void**)&call.high)) return NULL;
      call.low = start_of(&low), call.codes = start_of(&codes);
      call.bound_batch = low.strides[0], call.bound_head = low.strides[1], call.width = low.strides[2];
      call.code_batch = codes.strides[0], call.code_head = codes.strides[1];
      call.bits = PyLong_AsLongLong(args[BITS]);
    }
  }
  if (address_of(args[BUDGETS], (const void**)&call.n_keep) || address_of(args[TAILS], (const void**)&call.tails) ||
      address_of(args[SELECTORS], (const void**)&call.selectors) ||
      address_of(args[VALUE_SUM], (const void**)&call.value_sum) || address_of(args[SINK], (const void**)&call.sink))
    return NULL;
  call.q = start_of(&q), call.k = start_of(&k), call.v = start_of(&v);
  call.batch = 1, call.heads = q.shape[1], call.kv_heads = v.shape[1], call.keys = v.shape[2];
  call.dim = q.shape[3], call.value_dim = v.shape[3];
  call.q_batch = q.strides[0], call.q_head = q.strides[1];
  call.k_batch = k.strides[0], call.k_head = k.strides[1], call.k_row = k.strides[2];
  call.v_batch = v.strides[0], call.v_head = v.strides[1], call.v_row = v.strides[2];
  call.dtype = dtype, call.threads = PyLong_AsLongLong(args[THREADS]);
  call.scaling = PyFloat_AsDouble(args[SCALING]), call.softcap = PyFloat_AsDouble(args[SOFTCAP]);
  if (PyErr_Occurred()) return NULL;
  PyObject* output = allocated(args[QUERY], &out);
  if (output == NULL) return NULL;
  if (out.strides[1] != q.shape[3] || out.strides[3] != 1) { /* laid out as the query, which was not contiguous */
    Py_DECREF(output);
    Py_RETURN_NONE;
  }
  PyObject* counts = allocated(args[TAILS], &kept);
  if (counts == NULL) return Py_DECREF(output), NULL;
  call.out = start_of(&out), call.kept = start_of(&kept);
  int64_t unknown;
  Py_BEGIN_ALLOW_THREADS
  unknown = run_decode(&call);
  Py_END_ALLOW_THREADS
  PyObject* result = unknown ? NULL : attended->tp_alloc(attended, 2);
  if (result == NULL) {
    Py_DECREF(output);
    Py_DECREF(counts);
    return unknown ? Py_NewRef(Py_None) : NULL;
  }
  PyTuple_SET_ITEM(result, 0, output); /* the tuple's from here on */
  PyTuple_SET_ITEM(result, 1, counts);
  return result;
}

static int contiguous(const Tensor* tensor) {
  int64_t step = 1;
  for (int axis = tensor->ndim - 1; axis >= 0; --axis) {
    if (tensor->shape[axis] != 1 && tensor->strides[axis] != step) return 0;
    step *= tensor->shape[axis];
  }
  return 1;
}

/* A new contiguous tensor of the shape of `rows` but for its last axis, which has `columns`, and of the dtype of `rows`. */
static PyObject* allocated_rows(PyObject* rows, const Tensor* x, int64_t columns, Tensor* out) {
  PyObject *made = NULL, *shape = PyTuple_New(x->ndim), *dtype = PyObject_GetAttr(rows, dtype_name);
  for (int axis = 0; shape != NULL && axis < x->ndim; ++axis) {
    PyObject* size = PyLong_FromLongLong(axis == x->ndim - 1 ? columns : x->shape[axis]);
    if (size == NULL) Py_CLEAR(shape);
    else PyTuple_SET_ITEM(shape, axis, size);
  }
  if (shape != NULL && dtype != NULL) {
    PyObject* given[] = {shape, dtype};
    made = PyObject_Vectorcall(empty, given, 1, dtype_keyword);
  }
  Py_XDECREF(shape);
  Py_XDECREF(dtype);
  if (made != NULL && exchange->view(made, out)) Py_CLEAR(made);
  return made;
}

/* product(rows, weight, bias, most_rows, threads) -> Tensor, or None where the tensors are of another kind than this is for.
 * Meaning as in product.py. */
static PyObject* product(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != 5) return PyErr_Format(PyExc_TypeError, "product takes 5 arguments");
  struct ProductCall call = {0};
  Tensor x, weight, bias, out;
  const int64_t most_rows = PyLong_AsLongLong(args[3]);
  call.threads = PyLong_AsLongLong(args[4]);
  if (PyErr_Occurred()) return NULL;
  if (!both(args[0], args[1], &x, &weight)) Py_RETURN_NONE;
  call.dtype = place_of(&x);
  if (call.dtype < 0 || place_of(&weight) != call.dtype || x.device.type != CPU || weight.device.type != CPU || x.ndim < 1 ||
      weight.ndim != 2 || weight.strides[1] != 1 || x.shape[x.ndim - 1] != weight.shape[1] || !contiguous(&x))
    Py_RETURN_NONE;
  call.rows = 1, call.width = weight.shape[1], call.columns = weight.shape[0], call.weight_row = weight.strides[0];
  for (int axis = 0; axis < x.ndim - 1; ++axis) call.rows *= x.shape[axis];
  if (call.rows < 1 || call.rows > most_rows || call.width < 1 || call.columns < 1) Py_RETURN_NONE;
  if (args[2] != Py_None) {
    if (exchange->view(args[2], &bias)) return NULL;
    if (place_of(&bias) != call.dtype || bias.device.type != CPU || bias.ndim != 1 || !contiguous(&bias)) Py_RETURN_NONE;
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
 * than `most` numbers. Meaning as in norm.py. */
static PyObject* norm(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != 5) return PyErr_Format(PyExc_TypeError, "norm takes 5 arguments");
  struct NormCall call = {0};
  Tensor x, weight, out;
  call.eps = PyFloat_AsDouble(args[2]), call.kind = PyLong_AsLongLong(args[3]);
  const int64_t most = PyLong_AsLongLong(args[4]);
  if (PyErr_Occurred()) return NULL;
  if (!both(args[0], args[1], &x, &weight)) Py_RETURN_NONE;
  call.dtype = place_of(&x);
  if (call.dtype < 0 || place_of(&weight) != call.dtype || x.device.type != CPU || weight.device.type != CPU || x.ndim < 1 ||
      weight.ndim != 1 || x.shape[x.ndim - 1] != weight.shape[0] || !contiguous(&x) || !contiguous(&weight))
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
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_call", NULL, -1, methods, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__call(void) { return PyModule_Create(&module); }
