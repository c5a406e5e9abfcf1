// Tensors in: Python arrays become TensorViews, without a copy.
#pragma once

#include <pybind11/pybind11.h>

#include <memory_resource>
#include <vector>

#include "backend/backend.h"
#include "bindings/dlpack.h"
#include "tensors/check.h"
#include "tensors/view.h"

namespace fusestep {

// The dtypes that an argument may have.
enum class Dtypes { floats, integers, booleans_and_floats, floats_and_codes };

// Reads Python arrays as TensorViews and keeps alive what the views point into. One for each call of a bound function:
// it is made, used and destroyed while the thread holds the GIL; only the views are used without it.
class TensorReader {
 public:
  TensorReader() = default;
  TensorReader(const TensorReader&) = delete;
  TensorReader& operator=(const TensorReader&) = delete;
  ~TensorReader();

  // The view is valid as long as the reader. Its strides are null exactly if it is C-contiguous. Its device may be the
  // CPU or a CUDA device; whether that is supported is the caller's question, and so are read_only and overlaps.
  //
  // Throws when `object` is not an array of `dtypes` that lie in memory as they are:
  //   TypeError    not an array; complex and other dtypes; sparse, meta, fake, quantized, vmapped tensors;
  //                NumPy's masked arrays; lazily negated tensors
  //   ValueError   data or strides not aligned to whole elements; a device that is neither a CPU nor a CUDA device;
  //                arrays that only export copies
  TensorView read(pybind11::handle array, const Argument& argument, Dtypes dtypes = Dtypes::floats);

  // The stream for work on what was read on `device`: the one on which its producer works at this moment. A producer
  // that does not say gets the default stream, which DLPack's rules have made wait for its work, and a call that
  // waits.
  Stream stream_of(Device device);

 private:
  // What the type of an array says about how to read it.
  struct Producer {
    PyTypeObject* type;
    enum Kind { exchange_api, numpy, numpy_masked, other } kind;
    int (*tensor_from_object)(void*, dlpack::Tensor*);               // exchange_api
    int (*current_work_stream)(std::int32_t, std::int32_t, void**);  // exchange_api; may be null
    PyObject* is_neg;  // torch's method: null until asked for, None if there is none
  };

  // The types met in this call. A call meets two or three, so nothing is kept between calls: no lock, no state of the
  // module, nothing that outlives its interpreter.
  Producer& producer_of(PyTypeObject* type);
  Producer& add_producer(PyTypeObject* type);

  TensorView read_exchange_api(PyObject* object, Producer& producer, const Argument& argument, Dtypes dtypes);
  bool is_negated_lazily(PyObject* object, Producer& producer, const Argument& argument);
  TensorView read_numpy(PyObject* object, const Argument& argument, Dtypes dtypes);
  TensorView read_capsule(PyObject* object, const Argument& argument, Dtypes dtypes);

  void keep(PyObject* object) {
    owners_.push_back(object);
    Py_INCREF(object);
  }

  std::vector<PyObject*> owners_;  // strong references
  std::vector<Producer> producers_;
  std::size_t last_producer_ = 0;
  std::pmr::monotonic_buffer_resource layouts_;  // shapes and strides that had to be converted
};

}  // namespace fusestep
