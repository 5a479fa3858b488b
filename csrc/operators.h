// Makes C++ functions operators of PyTorch's stable ABI, which pass arguments on a stack of 64-bit values.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "tensors.h"

namespace lstm_fused {

// torch::stable::Tensor is a shared_ptr to a handle; Tensor is the handle, which costs nothing to make.
template <class Argument>
struct OnStack {
  static Argument take(StableIValue value) { return torch::stable::detail::to<Argument>(value); }
  static StableIValue give(const Argument& value) { return torch::stable::detail::from(value); }
};

template <>
struct OnStack<Tensor> {
  static Tensor take(StableIValue value) {
    return Tensor(torch::stable::detail::to<AtenTensorHandle>(value));
  }
  static StableIValue give(Tensor& tensor) { return torch::stable::detail::from(tensor.release()); }
};

template <>
struct OnStack<MaybeTensor> {
  static MaybeTensor take(StableIValue value) {
    const auto handle = torch::stable::detail::to<std::optional<AtenTensorHandle>>(value);
    return handle ? MaybeTensor(*handle) : std::nullopt;
  }
};

// The function as an operator: boxed<f> is what m.impl takes.
template <auto function>
struct Boxed;

template <class Result, class... Args, Result (*function)(Args...)>
struct Boxed<function> {
  static void call(StableIValue* stack, uint64_t arguments, uint64_t) {
    LSTM_FUSED_CHECK(arguments == sizeof...(Args), "the schema of an operator has ", arguments,
                     " arguments, its function ", sizeof...(Args));
    const auto all = std::index_sequence_for<Args...>{};
    if constexpr (std::is_void_v<Result>)
      call_with(stack, all);
    else
      give(stack, call_with(stack, all));
  }

 private:
  template <size_t... n>
  static Result call_with(const StableIValue* stack, std::index_sequence<n...>) {
    // All are taken before anything can throw: the stack does not own them.
    std::tuple<std::decay_t<Args>...> args{OnStack<std::decay_t<Args>>::take(stack[n])...};
    return std::apply(function, args);
  }
  template <class One>
  static void give(StableIValue* stack, One&& result) {
    *stack = OnStack<std::decay_t<One>>::give(result);
  }
  template <class... Many>
  static void give(StableIValue* stack, std::tuple<Many...>&& results) {
    std::apply([&](Many&... result) { ((*stack++ = OnStack<Many>::give(result)), ...); }, results);
  }
};

template <auto function>
constexpr auto boxed = Boxed<function>::call;

}  // namespace lstm_fused
