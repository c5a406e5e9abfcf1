// The extension module: a list of what it is made of.
#include "backend/dispatch.h"
#include "bindings/functions.h"
#include "tensors/check.h"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  using namespace fusestep;
  // NOLINTNEXTLINE(performance-unnecessary-value-param): pybind11's signature
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const WrongType& wrong) {
      py::set_error(PyExc_TypeError, wrong.what());
    }
  });
  try {
    choose_simd_level();
  } catch (const std::runtime_error& error) {
    throw py::import_error(error.what());
  }
  m.attr("__version__") = FUSESTEP_VERSION;
  bind_runtime(m);
  bind_optim(m);
  bind_grads(m);
  bind_cross_entropy(m);
  bind_dropout(m);
  bind_eight_bit(m);
  bind_attention(m);
  bind_masked_softmax(m);
  bind_bf16_products(m);
  bind_measures(m);
}
