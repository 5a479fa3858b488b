// Serves the operators of binding.cpp to emulated.py: reads calls from standard input, writes their results
// to standard output.
#include <iostream>
#include <stdexcept>

#include "runtime/memory.h"
#include "shim.h"

namespace {

template <class Item>
Item read() {
  Item item;
  std::cin.read(reinterpret_cast<char*>(&item), sizeof item);
  return item;
}

std::vector<int64_t> read_ints() {
  std::vector<int64_t> result(static_cast<size_t>(read<int64_t>()));
  for (int64_t& value : result) value = read<int64_t>();
  return result;
}

PlainTensor read_tensor() {
  const auto dtype = static_cast<int32_t>(read<int64_t>());
  std::vector<int64_t> sizes = read_ints(), strides = read_ints();
  const auto offset = read<int64_t>(), bytes = read<int64_t>();
  const Storage storage = allocate(bytes);
  std::cin.read(static_cast<char*>(storage.memory.get()), bytes);
  return {storage, dtype, std::move(sizes), std::move(strides), offset};
}

// An argument as it lies on the operator's stack: a letter says what it is, its bytes follow.
StableIValue read_argument(bool optional) {
  const char kind = read<char>();
  if (kind == 'n') return 0;
  const StableIValue value = kind == 't' ? reinterpret_cast<StableIValue>(handle_of(read_tensor()))
                                         : static_cast<StableIValue>(read<int64_t>());
  return optional ? reinterpret_cast<StableIValue>(new StableIValue(value)) : value;
}

template <class Item>
void write(const Item& item) {
  std::cout.write(reinterpret_cast<const char*>(&item), sizeof item);
}

// dtype, number of dimensions, sizes, data.
void write_tensor(const PlainTensor& tensor) {
  write(static_cast<int64_t>(tensor.dtype));
  write(static_cast<int64_t>(tensor.sizes.size()));
  for (const int64_t size : tensor.sizes) write(size);
  std::cout.write(tensor.data(),
                  tensor.numel() * static_cast<int64_t>(aoti_torch_dtype_element_size(tensor.dtype)));
}

// A call: the length of the operator's name and the name, threads, arguments.
bool serve() {
  const auto length = read<int64_t>();
  if (!std::cin) return false;
  std::string name(static_cast<size_t>(length), ' ');
  for (char& letter : name) letter = read<char>();
  threads = static_cast<uint32_t>(read<int64_t>());
  const Operator& op = operators().at(name);
  std::vector<StableIValue> stack;
  for (const bool optional : op.optional) stack.push_back(read_argument(optional));
  const size_t arguments = stack.size();
  stack.resize(std::max<size_t>(arguments, op.results));
  try {
    op.function(stack.data(), arguments, op.results);
    write('r');
    write(static_cast<int64_t>(op.results));
    for (size_t n = 0; n < op.results; ++n) {
      const auto handle = reinterpret_cast<AtenTensorHandle>(stack[n]);
      write_tensor(tensor_of(handle));
      aoti_torch_delete_tensor_object(handle);
    }
  } catch (const std::runtime_error& error) {
    const std::string text = error.what();
    write('e');
    write(static_cast<int64_t>(text.size()));
    std::cout << text;
  }
  std::cout.flush();
  return true;
}

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  lstm_fused::fill_new_memory(true);
  while (serve()) {
  }
}
