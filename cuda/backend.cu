#include "cuda/attention/attention.h"
#include "cuda/backend.h"
#include "cuda/cross_entropy.h"
#include "cuda/devices.h"
#include "cuda/dropout.h"
#include "cuda/masked_softmax.h"
#include "cuda/step.h"

namespace fusestep::cuda {

namespace {

const Backend kBackend{
    .name = "cuda",
    .defers = true,
    .strided_8bit = false,
    .step = run_step,
    .total = run_total,
    .transform = run_transform,
    .dropout = run_dropout,
    .attention_forward = run_attention_forward,
    .attention_backward = run_attention_backward,
    .masked_softmax_forward = run_masked_softmax_forward,
    .masked_softmax_backward = run_masked_softmax_backward,
    .cross_entropy = run_cross_entropy,
};

}  // namespace

const Backend& backend_for(Device device, const Argument& argument) {
  const std::string obstacle = obstacle_of(device.type == kDeviceCuda ? device.index : 0);
  if (!obstacle.empty()) refuse_value(argument, "a device that this build has kernels for", obstacle);
  return kBackend;
}

}  // namespace fusestep::cuda
