// Runs a TorchScript file or an AOTInductor package that holds an LSTM of lstm_fused, without Python:
//   run LIBRARY MODEL INPUT OUTPUT
// LIBRARY is lstm_fused/_cpp.so; INPUT and OUTPUT are tensors as torch.save writes them.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

at::Tensor read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  return torch::jit::pickle_load(bytes).toTensor();
}

void write(const std::string& path, const at::Tensor& tensor) {
  const std::vector<char> bytes = torch::jit::pickle_save(tensor);
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

at::Tensor run(const std::string& model, const at::Tensor& x) {
  if (model.ends_with(".pt2")) return torch::inductor::AOTIModelPackageLoader(model).run({x}).at(0);
  return torch::jit::load(model).forward({x}).toTensor();
}

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: run LIBRARY MODEL INPUT OUTPUT\n";
    return 2;
  }
  // Registers the operators. They have no derivatives here: those are in Python.
  if (!dlopen(argv[1], RTLD_NOW)) {
    std::cerr << dlerror() << '\n';
    return 1;
  }
  const c10::InferenceMode inference;
  write(argv[4], run(argv[2], read(argv[3])));
}
