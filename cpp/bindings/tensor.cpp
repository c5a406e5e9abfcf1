#include "bindings/tensor.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <string>

#include "tensors/view_layout.h"

namespace fusestep {

namespace py = pybind11;

namespace {

constexpr const char* kExpectedArray = "a dense float array (NumPy, torch or any with DLPack)";
// By Dtypes.
constexpr const char* kExpectedDtype[] = {
    "a float32, float64, float16 or bfloat16 array",
    "an int32 or int64 array",
    "a bool, float32, float64, float16 or bfloat16 array",
    "a float32, float64, float16, bfloat16 or uint8 array",
};
constexpr const char* kConvertDtype = "Convert it to one of these first.";

// The name of an attribute. CPython caches attributes of types by the address of the name: a fresh string for each
// look-up would miss that cache, and fill it.
py::str interned(const char* name) {
  auto string = py::reinterpret_steal<py::str>(PyUnicode_InternFromString(name));
  if (!string) throw py::error_already_set();
  return string;
}

// "torch.Tensor", "list"
std::string name_of_type(PyObject* object) {
  const py::type type = py::type::of(object);
  const std::string module = py::str(type.attr(interned("__module__")));
  const std::string name = py::str(type.attr(interned("__qualname__")));
  return module == "builtins" ? name : module + "." + name;
}

// " of layout torch.sparse_coo" for a torch tensor that is not a plain one.
std::string describe_layout(PyObject* object) {
  const std::string layout = py::str(py::getattr(object, interned("layout"), py::none()));
  return layout.starts_with("torch.") && layout != "torch.strided" ? " of layout " + layout : "";
}

bool accepts(Dtypes dtypes, DType dtype) {
  switch (dtypes) {
    case Dtypes::floats:
      return is_float(dtype);
    case Dtypes::integers:
      return dtype == DType::int32 || dtype == DType::int64;
    case Dtypes::floats_and_codes:
      return is_float(dtype) || dtype == DType::uint8;
    default:
      return is_float(dtype) || dtype == DType::boolean;
  }
}

[[noreturn]] void refuse_dtype(const Argument& argument, Dtypes dtypes, const std::string& got) {
  refuse_type(argument, kExpectedDtype[static_cast<int>(dtypes)], got, kConvertDtype);
}

// Refuses an array whose own library raised, with that exception (which is set) as the cause of ours. What is not
// about the array (KeyboardInterrupt, MemoryError) goes on as it is.
[[noreturn]] void refuse_with_cause(const Argument& argument, PyObject* object) {
  if (PyErr_ExceptionMatches(PyExc_Exception) == 0 || PyErr_ExceptionMatches(PyExc_MemoryError) != 0) {
    throw py::error_already_set();
  }
  py::error_already_set cause;
  // Only the first line of the reason: torch adds a C++ backtrace, which stays with the cause.
  const std::string reason = py::str(cause.value());
  const std::string got = "a " + name_of_type(object) + describe_layout(object) +
                          " that cannot be exported: " + reason.substr(0, reason.find('\n'));
  try {
    refuse_type(argument, kExpectedArray, got);
  } catch (const WrongType& refusal) {
    py::raise_from(cause, PyExc_TypeError, refusal.what());
    throw py::error_already_set();
  }
}

// "int64", "complex64", "float8_e5m2"
std::string name_of(dlpack::DataType dtype) {
  const std::string bits = std::to_string(dtype.bits);
  const std::string lanes = dtype.lanes == 1 ? "" : "x" + std::to_string(dtype.lanes);
  switch (dtype.code) {
    case dlpack::kInt:
      return "int" + bits + lanes;
    case dlpack::kUInt:
      return "uint" + bits + lanes;
    case dlpack::kFloat:
      return "float" + bits + lanes;
    case dlpack::kOpaque:
      return "opaque" + bits + lanes;
    case dlpack::kBfloat:
      return "bfloat" + bits + lanes;
    case dlpack::kComplex:
      return "complex" + bits + lanes;
    case dlpack::kBool:
      return "bool" + lanes;
    default:
      break;
  }
  static constexpr const char* kSmallFloats[] = {
      "float8_e3m4",     "float8_e4m3",    "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2",
      "float8_e5m2fnuz", "float8_e8m0fnu", "float6_e2m3fn",      "float6_e3m2fn", "float4_e2m1fn",
  };
  const std::size_t index = dtype.code - 7U;
  if (index < std::size(kSmallFloats)) return kSmallFloats[index] + lanes;
  return "an unknown dtype (DLPack code " + std::to_string(dtype.code) + ", " + bits + " bits)";
}

std::string name_of_device(std::int32_t type) {
  switch (type) {
    case 3:
      return "CUDA pinned host memory";
    case 4:
      return "OpenCL";
    case 7:
      return "Vulkan";
    case 8:
      return "Metal";
    case 9:
      return "VPI";
    case 10:
      return "ROCm";
    case 11:
      return "ROCm pinned host memory";
    case 13:
      return "CUDA managed memory";
    case 14:
      return "oneAPI";
    case 15:
      return "WebGPU";
    case 16:
      return "Hexagon";
    case 17:
      return "MAIA";
    case 18:
      return "Trainium";
    default:
      return "device type " + std::to_string(type);
  }
}

bool to_dtype(dlpack::DataType dtype, DType& out) {
  if (dtype.lanes != 1) return false;
  if (dtype.code == dlpack::kFloat && dtype.bits == 32) {
    out = DType::float32;
  } else if (dtype.code == dlpack::kBfloat && dtype.bits == 16) {
    out = DType::bfloat16;
  } else if (dtype.code == dlpack::kFloat && dtype.bits == 64) {
    out = DType::float64;
  } else if (dtype.code == dlpack::kFloat && dtype.bits == 16) {
    out = DType::float16;
  } else if (dtype.code == dlpack::kInt && dtype.bits == 32) {
    out = DType::int32;
  } else if (dtype.code == dlpack::kInt && dtype.bits == 64) {
    out = DType::int64;
  } else if (dtype.code == dlpack::kBool && dtype.bits == 8) {
    out = DType::boolean;
  } else if (dtype.code == dlpack::kUInt && dtype.bits == 8) {
    out = DType::uint8;
  } else {
    return false;
  }
  return true;
}

// The type's table in the version that this library reads, or null.
const dlpack::ExchangeApi* exchange_api_of(py::handle type) {
  const py::object capsule = py::getattr(type, interned("__dlpack_c_exchange_api__"), py::none());
  if (PyCapsule_IsValid(capsule.ptr(), dlpack::kExchangeApiName) == 0) return nullptr;
  const auto* api =
      static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kExchangeApiName));
  while (api != nullptr && api->version.major > dlpack::kMajorVersion) api = api->older;
  const bool readable =
      api != nullptr && api->version.major == dlpack::kMajorVersion && api->tensor_from_object != nullptr;
  return readable ? api : nullptr;
}

// Whether the bytes from the lowest to the highest element can be counted.
bool spans_countable_bytes(const TensorView& view) {
  std::int64_t bytes = size_of(view.dtype);
  for (std::int32_t i = 0; i < view.ndim; ++i) {
    const std::int64_t stride = view.strides[i];
    std::int64_t reach = 0;
    if (stride == INT64_MIN || __builtin_mul_overflow(std::abs(stride), view.shape[i] - 1, &reach) ||
        __builtin_mul_overflow(reach, size_of(view.dtype), &reach) || __builtin_add_overflow(bytes, reach, &bytes)) {
      return false;
    }
  }
  return true;
}

// Whether the bytes of a C-contiguous array can be counted; of an empty one, those beside the dimensions of size 0: its
// strides are worked out too.
bool has_countable_bytes(const TensorView& view) {
  std::int64_t bytes = size_of(view.dtype);
  for (std::int32_t i = 0; i < view.ndim; ++i) {
    const std::int64_t size = view.shape[i];
    if (size < 0 || __builtin_mul_overflow(bytes, std::max<std::int64_t>(size, 1), &bytes)) return false;
  }
  return true;
}

// Counts the elements, and drops strides that only say "C-contiguous". Refuses sizes and strides whose products do not
// fit: a capsule may hold any numbers, and all later arithmetic counts on it.
void settle_layout(TensorView& view, const Argument& argument) {
  std::int64_t bytes = size_of(view.dtype);
  std::int64_t numel = 1;
  bool contiguous = true;
  bool fits = true;
  for (std::int32_t i = view.ndim; i-- > 0;) {
    const std::int64_t size = view.shape[i];
    contiguous = contiguous && (view.strides == nullptr || size == 1 || view.strides[i] == numel);
    fits = fits && size > 0 && !__builtin_mul_overflow(bytes, size, &bytes);
    numel = fits ? numel * size : 0;
  }
  view.numel = numel;
  if (contiguous || numel <= 1) view.strides = nullptr;
  if ((!fits && !has_countable_bytes(view)) || (view.strides != nullptr && !spans_countable_bytes(view))) {
    refuse_value(argument, "sizes and strides of at most 2**63 - 1 bytes", "shape " + describe_shape(view));
  }
}

void require_alignment(const TensorView& view, const Argument& argument) {
  const std::int64_t itemsize = size_of(view.dtype);
  const auto misplaced = reinterpret_cast<std::uintptr_t>(view.data) & static_cast<std::uintptr_t>(itemsize - 1);
  if (misplaced != 0 && view.numel > 0) {
    refuse_value(argument, "data aligned to its " + std::to_string(itemsize) + "-byte elements",
                 "data that begin " + std::to_string(misplaced) + " bytes after such an address",
                 "Copy the array first.");
  }
}

TensorView to_view(const dlpack::Tensor& tensor, PyObject* object, const Argument& argument, Dtypes dtypes) {
  TensorView view;
  if (!to_dtype(tensor.dtype, view.dtype) || !accepts(dtypes, view.dtype)) {
    refuse_dtype(argument, dtypes, name_of(tensor.dtype));
  }
  if (tensor.device.type != kDeviceCpu && tensor.device.type != kDeviceCuda) {
    refuse_value(argument, "an array on a CPU or CUDA device", "one on " + name_of_device(tensor.device.type),
                 "Move it first.");
  }
  view.device = {tensor.device.type, tensor.device.index};
  constexpr std::int32_t kMostDims = 64;  // NumPy's limit
  if (tensor.ndim < 0 || tensor.ndim > kMostDims || (tensor.ndim > 0 && tensor.shape == nullptr)) {
    refuse_value(argument, "a shape of 0 to " + std::to_string(kMostDims) + " dimensions",
                 tensor.shape == nullptr ? "none" : std::to_string(tensor.ndim) + " dimensions");
  }
  view.ndim = tensor.ndim;
  view.shape = tensor.shape;
  view.strides = tensor.strides;
  settle_layout(view, argument);
  if (tensor.data == nullptr && view.numel > 0) {
    refuse_type(argument, kExpectedArray,
                "a " + name_of_type(object) + " of shape " + describe_shape(view) + " without memory",
                "Fake, meta and wrapper tensors hold no numbers of their own.");
  }
  if (tensor.data != nullptr) view.data = static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
  require_alignment(view, argument);
  return view;
}

// Whether this could be the imaginary part of a complex tensor: every step leads over a real part, and a lone element
// lies in the second half of its complex number.
bool may_be_imaginary(const TensorView& view) {
  if (view.strides == nullptr) {
    const auto address = reinterpret_cast<std::uintptr_t>(view.data);
    return view.numel == 1 && (address & static_cast<std::uintptr_t>(size_of(view.dtype))) != 0;
  }
  for (std::int32_t i = 0; i < view.ndim; ++i) {
    if (view.shape[i] > 1 && view.strides[i] % 2 != 0) return false;
  }
  return true;
}

bool is_native(char byteorder) {
  const char native = std::endian::native == std::endian::little ? '<' : '>';
  return byteorder == '=' || byteorder == '|' || byteorder == native;
}

bool to_dtype(const py::dtype& dtype, DType& out) {
  if (dtype.kind() == 'f') {
    switch (dtype.char_()) {
      case 'f':
        out = DType::float32;
        return true;
      case 'd':
        out = DType::float64;
        return true;
      case 'e':
        out = DType::float16;
        return true;
      default:
        break;
    }
  }
  if (dtype.kind() == 'i' && (dtype.itemsize() == 4 || dtype.itemsize() == 8)) {
    out = dtype.itemsize() == 4 ? DType::int32 : DType::int64;
    return true;
  }
  if (dtype.kind() == 'b') {
    out = DType::boolean;
    return true;
  }
  if (dtype.kind() == 'u' && dtype.itemsize() == 1) {
    out = DType::uint8;
    return true;
  }
  // NumPy itself has no bfloat16; ml_dtypes adds one.
  out = DType::bfloat16;
  return std::string(py::str(dtype.attr(interned("name")))) == "bfloat16";
}

// Fills the strides with whole elements. False if the bytes are not multiples of the element's size.
bool divide_strides(const py::array& array, DType dtype, std::int64_t* strides) {
  const std::int64_t itemsize = size_of(dtype);  // a power of two: masks and shifts, no divisions
  const int shift = std::countr_zero(static_cast<std::uint64_t>(itemsize));
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    const std::int64_t bytes = array.strides()[i];
    if ((bytes & (itemsize - 1)) != 0 && array.shape()[i] > 1) return false;
    strides[i] = bytes >> shift;
  }
  return true;
}

}  // namespace

TensorReader::~TensorReader() {
  // A finalizer may run here; an exception on its way out is not its business.
  const py::error_scope keep_exception;
  for (PyObject* owner : owners_) Py_DECREF(owner);
  for (const Producer& producer : producers_) {
    Py_DECREF(producer.type);
    Py_XDECREF(producer.is_neg);
  }
}

TensorView TensorReader::read(py::handle array, const Argument& argument, Dtypes dtypes) {
  PyObject* object = array.ptr();
  Producer& producer = producer_of(Py_TYPE(object));
  switch (producer.kind) {
    case Producer::exchange_api:
      keep(object);
      return read_exchange_api(object, producer, argument, dtypes);
    case Producer::numpy:
      keep(object);
      return read_numpy(object, argument, dtypes);
    case Producer::numpy_masked:
      refuse_type(argument, "an array without a mask", "a " + name_of_type(object), "Pass its .data or .filled().");
    default:
      return read_capsule(object, argument, dtypes);
  }
}

Stream TensorReader::stream_of(Device device) {
  if (device.type == kDeviceCpu) return {device, nullptr, false};
  Stream stream{device, nullptr, true};
  bool all_say = true;
  for (const Producer& producer : producers_) {
    void* handle = nullptr;
    if (producer.current_work_stream == nullptr) {
      // NumPy has nothing on a device.
      all_say = all_say && (producer.kind == Producer::numpy || producer.kind == Producer::numpy_masked);
    } else if (producer.current_work_stream(device.type, device.index, &handle) == 0) {
      stream.handle = handle;
      stream.wait = false;
    } else {
      throw py::error_already_set();
    }
  }
  stream.wait = stream.wait || !all_say;
  return stream;
}

TensorReader::Producer& TensorReader::producer_of(PyTypeObject* type) {
  if (last_producer_ < producers_.size() && producers_[last_producer_].type == type) return producers_[last_producer_];
  for (std::size_t i = 0; i < producers_.size(); ++i) {
    if (producers_[i].type == type) {
      last_producer_ = i;
      return producers_[i];
    }
  }
  return add_producer(type);
}

TensorReader::Producer& TensorReader::add_producer(PyTypeObject* type) {
  Producer producer{type, Producer::other, nullptr, nullptr, nullptr};
  const py::handle handle(reinterpret_cast<PyObject*>(type));
  auto* ndarray = reinterpret_cast<PyTypeObject*>(py::detail::npy_api::get().PyArray_Type_);
  if (type == ndarray) {
    producer.kind = Producer::numpy;
  } else if (PyType_IsSubtype(type, ndarray) != 0) {
    producer.kind = py::hasattr(handle, interned("mask")) ? Producer::numpy_masked : Producer::numpy;
  } else if (const dlpack::ExchangeApi* api = exchange_api_of(handle)) {
    producer.kind = Producer::exchange_api;
    producer.tensor_from_object = api->tensor_from_object;
    producer.current_work_stream = api->current_work_stream;
  }
  producers_.push_back(producer);
  Py_INCREF(type);
  last_producer_ = producers_.size() - 1;
  return producers_.back();
}

TensorView TensorReader::read_exchange_api(PyObject* object, Producer& producer, const Argument& argument,
                                           Dtypes dtypes) {
  dlpack::Tensor tensor;
  if (producer.tensor_from_object(object, &tensor) != 0) refuse_with_cause(argument, object);
  const TensorView view = to_view(tensor, object, argument, dtypes);
  if (may_be_imaginary(view) && is_negated_lazily(object, producer, argument)) {
    refuse_type(argument, kExpectedArray, "a " + name_of_type(object) + " that is negated lazily",
                "Pass tensor.resolve_neg().");
  }
  return view;
}

// torch negates the imaginary parts of conjugated complex tensors lazily, by a bit that the exchange API passes over.
bool TensorReader::is_negated_lazily(PyObject* object, Producer& producer, const Argument& argument) {
  if (producer.is_neg == nullptr) {
    const py::handle type(reinterpret_cast<PyObject*>(producer.type));
    producer.is_neg = py::getattr(type, interned("is_neg"), py::none()).release().ptr();
  }
  if (producer.is_neg == Py_None) return false;  // not torch
  const auto result = py::reinterpret_steal<py::object>(PyObject_CallOneArg(producer.is_neg, object));
  if (!result) refuse_with_cause(argument, object);
  return result.is(py::bool_(true));
}

TensorView TensorReader::read_numpy(PyObject* object, const Argument& argument, Dtypes dtypes) {
  const auto array = py::reinterpret_borrow<py::array>(object);
  const py::dtype dtype = array.dtype();
  TensorView view;
  if (!to_dtype(dtype, view.dtype) || !accepts(dtypes, view.dtype)) refuse_dtype(argument, dtypes, py::str(dtype));
  if (!is_native(dtype.byteorder())) {
    refuse_type(argument, "an array in this machine's byte order", py::str(dtype),
                "Convert it with array.astype(array.dtype.newbyteorder('=')).");
  }
  view.data = const_cast<void*>(array.data());  // whether it may be written is said by read_only
  view.read_only = !array.writeable();
  view.ndim = static_cast<std::int32_t>(array.ndim());
  const auto ndim = static_cast<std::size_t>(array.ndim());
  auto* layout = static_cast<std::int64_t*>(layouts_.allocate(2 * ndim * sizeof(std::int64_t), alignof(std::int64_t)));
  std::int64_t* strides = layout + ndim;
  std::copy_n(array.shape(), ndim, layout);
  if (!divide_strides(array, view.dtype, strides)) {
    refuse_value(argument, "strides of whole elements of " + std::to_string(size_of(view.dtype)) + " bytes",
                 "strides " + std::string(py::str(py::handle(object).attr(interned("strides")))) + " in bytes",
                 "Copy the array first.");
  }
  view.shape = layout;
  view.strides = strides;
  settle_layout(view, argument);
  require_alignment(view, argument);
  return view;
}

TensorView TensorReader::read_capsule(PyObject* object, const Argument& argument, Dtypes dtypes) {
  py::object array = py::reinterpret_borrow<py::object>(object);
  py::object capsule;
  bool asked_for_flags = true;
  try {
    // A torch without the exchange API does not export tensors that require a gradient. Here no gradient is taken.
    if (py::hasattr(array, interned("detach")) &&
        py::getattr(array, interned("requires_grad"), py::none()).is(py::bool_(true))) {
      array = array.attr(interned("detach"))();
    }
    if (!py::hasattr(array, interned("__dlpack__"))) {
      refuse_type(argument, kExpectedArray, name_of_type(object));
    }
    const py::object exported = array.attr(interned("__dlpack__"));
    try {
      capsule = exported(py::arg("max_version") = py::make_tuple(dlpack::kMajorVersion, 0));
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;
      asked_for_flags = false;  // a producer from before DLPack 1.0
      capsule = exported();
    }
  } catch (py::error_already_set& error) {
    error.restore();
    refuse_with_cause(argument, object);
  }
  keep(object);
  // The capsule frees the export with itself as long as nobody has renamed it, so to hold it is to hold the memory.
  keep(capsule.ptr());
  if (PyCapsule_IsValid(capsule.ptr(), dlpack::kVersionedName) != 0) {
    const auto* managed =
        static_cast<const dlpack::ManagedTensorVersioned*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kVersionedName));
    if (managed->version.major != dlpack::kMajorVersion) {
      refuse_type(argument, "an array exported with DLPack 1.x",
                  "DLPack " + std::to_string(managed->version.major) + "." + std::to_string(managed->version.minor));
    }
    if ((managed->flags & dlpack::kIsCopied) != 0) {
      refuse_value(argument, "an array that exports its own memory",
                   "a " + name_of_type(object) + " that exports a copy");
    }
    TensorView view = to_view(managed->tensor, object, argument, dtypes);
    view.read_only = (managed->flags & dlpack::kReadOnly) != 0;
    return view;
  }
  if (PyCapsule_IsValid(capsule.ptr(), dlpack::kUnversionedName) != 0) {
    const auto* managed =
        static_cast<const dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kUnversionedName));
    TensorView view = to_view(managed->tensor, object, argument, dtypes);
    // A producer that knows the flags and gives none has not said that its memory may be written, and JAX, which does
    // so, counts on it that nobody does.
    view.read_only = asked_for_flags;
    return view;
  }
  refuse_type(argument, kExpectedArray,
              "a " + name_of_type(object) + " whose __dlpack__() returns a " + name_of_type(capsule.ptr()));
}

}  // namespace fusestep
