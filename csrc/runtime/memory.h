// Memory that is used again by the next call, instead of going back to the system and coming anew.
#pragma once

#include <ATen/core/Tensor.h>

namespace lstm_fused {

// As `like.new_empty(shape)`; where the tensor is large, in memory that an earlier one has left.
at::Tensor empty(const at::Tensor& like, at::IntArrayRef shape);

}  // namespace lstm_fused
