// fusestep._core: what was compiled, what was chosen, how many threads.
#include "backend/dispatch.h"
#include "bindings/functions.h"
#include "bindings/options.h"
#include "tensors/huge_pages.h"
#include "threads/threads.h"

namespace fusestep {

namespace {

void set_threads(py::handle n) {
  const Argument argument{"set_num_threads", "n"};
  if (!PyIndex_Check(n.ptr()) || PyBool_Check(n.ptr())) refuse_type(argument, "an int", text_of(n));
  const Py_ssize_t count = PyNumber_AsSsize_t(n.ptr(), nullptr);  // clamps a number beyond 64 bits
  if (count < 0 || count > max_threads) {
    refuse_value(argument, "1 to " + std::to_string(max_threads) + ", or 0 for automatic", text_of(n));
  }
  set_num_threads(static_cast<int>(count));
}

}  // namespace

void bind_runtime(py::module_& m) {
  m.def("set_num_threads", &set_threads, py::arg("n"),
        "How many threads fusestep uses from now on; 0: automatic (torch's number if torch is loaded, else "
        "OMP_NUM_THREADS, else the CPUs this process may use).");
  m.def("get_num_threads", &num_threads, "How many threads the next call may use.");
  m.def("prefer_huge_pages", &prefer_huge_pages, py::arg("address"), py::arg("bytes"),
        "Asks for huge pages for new memory that is about to be written.");
  m.def("info", [] {
    py::dict info;
    info["version"] = FUSESTEP_VERSION;
    info["simd_compiled"] = compiled_simd_levels();
    info["simd"] = simd_level();
    info["threads"] = num_threads();
    info["thread_source"] = thread_source();
    const CudaInfo cuda = cuda_info();
    info["cuda_architectures"] = cuda.architectures;
    info["cuda_devices"] = cuda.devices;
    info["cuda_attention"] = cuda.attention;
    return info;
  });
}

}  // namespace fusestep
