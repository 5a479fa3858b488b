// Serves the operators of binding.cpp to emulated.py: reads calls from standard input, writes their results
// to standard output.
#include <iostream>

#include "runtime/memory.h"

namespace lstm_fused {

// In place of runtime/memory.cpp, whose pool is behind PyTorch's allocator.
at::Tensor empty(const at::Tensor& like, at::IntArrayRef shape) { return like.new_empty(shape); }

namespace {

template <class Item>
void write(const Item& item) {
  std::cout.write(reinterpret_cast<const char*>(&item), sizeof item);
}

void write_text(char kind, const std::string& text) {
  write(kind);
  write(static_cast<int64_t>(text.size()));
  std::cout << text;
}

// Each result: dtype, number of dimensions, sizes, data.
void write_results(const std::vector<at::Tensor>& results) {
  write('r');
  write(static_cast<int64_t>(results.size()));
  for (const at::Tensor& result : results) {
    write(result.scalar_type());
    write(result.dim());
    for (const int64_t size : result.sizes()) write(size);
    std::cout.write(static_cast<const char*>(result.const_data_ptr()),
                    result.numel() * static_cast<int64_t>(result.itemsize()));
  }
}

// A call: the length of the operator's name and the name, threads, arguments.
bool serve(torch::Arguments& call) {
  const auto length = call.raw<int64_t>();
  if (!std::cin) return false;
  std::string name(static_cast<size_t>(length), ' ');
  for (char& letter : name) letter = call.raw<char>();
  at::threads = static_cast<int>(call.raw<int64_t>());
  try {
    write_results(torch::Operators::all.at(name)(call));
  } catch (const std::invalid_argument& error) {
    write_text('v', error.what());
  } catch (const std::domain_error& error) {
    write_text('t', error.what());
  } catch (const std::runtime_error& error) {
    write_text('e', error.what());
  }
  std::cout.flush();
  return true;
}

}  // namespace
}  // namespace lstm_fused

int main() {
  std::ios::sync_with_stdio(false);
  torch::Arguments call(std::cin);
  while (lstm_fused::serve(call)) {
  }
}
