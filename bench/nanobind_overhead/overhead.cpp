// Reads every tensor of a list and does nothing with it, bound with nanobind: what a call and a tensor cost there.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <stdexcept>

namespace nb = nanobind;

namespace {

// What a kernel needs to know of a tensor.
struct View {
  void* data;
  std::int64_t numel;
  std::size_t ndim;
  const std::int64_t* shape;
  const std::int64_t* strides;
};

// Keeps the compiler from dropping the reads.
void use(const View& view) { asm volatile("" : : "m"(view)); }

// The way nanobind offers: ndarray, that is __dlpack__ capsules (or the buffer protocol).
std::size_t read_ndarrays(const nb::list& tensors) {
  for (nb::handle item : tensors) {
    const auto array = nb::cast<nb::ndarray<float, nb::device::cpu>>(item);
    use({array.data(), static_cast<std::int64_t>(array.size()), array.ndim(), array.shape_ptr(), array.stride_ptr()});
  }
  return tensors.size();
}

// DLPack's C exchange API, version 1: only what is read here. nanobind does not know it, but its users may.
struct ExchangeApi {
  std::uint32_t major, minor;
  void* older;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, nb::dlpack::dltensor* out);
  void* current_stream;
};

// The way fusestep reads, under nanobind: what is left is the cost of the binding itself.
std::size_t read_exchange_api(const nb::list& tensors) {
  PyTypeObject* type = nullptr;
  const ExchangeApi* api = nullptr;
  for (nb::handle item : tensors) {
    if (Py_TYPE(item.ptr()) != type) {
      type = Py_TYPE(item.ptr());
      const nb::object capsule = nb::handle(reinterpret_cast<PyObject*>(type)).attr("__dlpack_c_exchange_api__");
      api = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
      if (api == nullptr) throw nb::python_error();
      if (api->major != 1) throw std::runtime_error("read_exchange_api: an exchange API of another major version");
    }
    nb::dlpack::dltensor tensor;
    if (api->tensor_from_object(item.ptr(), &tensor) != 0) throw nb::python_error();
    std::int64_t numel = 1;
    for (std::int32_t d = 0; d < tensor.ndim; ++d) numel *= tensor.shape[d];
    use({tensor.data, numel, static_cast<std::size_t>(tensor.ndim), tensor.shape, tensor.strides});
  }
  return tensors.size();
}

}  // namespace

NB_MODULE(nanobind_overhead, m) {
  m.def("read_ndarrays", &read_ndarrays, nb::arg("tensors"));
  m.def("read_exchange_api", &read_exchange_api, nb::arg("tensors"));
}
