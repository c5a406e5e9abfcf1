// What the files of bindings/ add to the module.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace fusestep {

namespace py = pybind11;

void bind_optim(py::module_& m);
void bind_grads(py::module_& m);
void bind_cross_entropy(py::module_& m);
void bind_dropout(py::module_& m);
void bind_eight_bit(py::module_& m);
void bind_attention(py::module_& m);
void bind_masked_softmax(py::module_& m);
void bind_bf16_products(py::module_& m);
void bind_runtime(py::module_& m);
void bind_measures(py::module_& m);

}  // namespace fusestep
