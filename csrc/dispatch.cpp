// Detects instruction sets, the L2 cache and the vendor at run time.
#include "dispatch.h"

#ifdef __linux__
#include <sys/syscall.h>
#endif
#ifdef __unix__
#include <unistd.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "thresholds.h"

namespace lstm_fused {

// One per targets/*.cpp.
namespace amx {
extern const Engine engine;
}
namespace avx512bf16 {
extern const Engine engine;
}
namespace avx512 {
extern const Engine engine;
}
namespace avx2 {
extern const Engine engine;
}
namespace generic {
extern const Engine engine;
}
namespace generic512 {
extern const Engine engine;
}

namespace {

struct Candidate {
  const Engine* engine;
  bool runs;  // on this machine and its operating system
};

#ifdef __x86_64__
bool avx512_runs() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
}

// Linux enables AMX tile registers only for a process that asks.
bool amx_runs() {
#ifdef __linux__
  constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("amx-tile") &&
         syscall(SYS_arch_prctl, request, tile_data) == 0;
#else
  return false;
#endif
}
#endif

// Best first; generic512 is never the best.
const Candidate candidates[] = {
#ifdef __x86_64__
    {&amx::engine, avx512_runs() && __builtin_cpu_supports("avx512bf16") && amx_runs()},
    {&avx512bf16::engine, avx512_runs() && __builtin_cpu_supports("avx512bf16")},
    {&avx512::engine, avx512_runs()},
    {&avx2::engine, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
    {&generic::engine, true},
    {&generic512::engine, true},
};

const Engine& choose() {
  const char* wanted = std::getenv("LSTM_FUSED_ISA");
  for (const auto& [engine, runs] : candidates)
    if (runs && (!wanted || std::string(wanted) == engine->isa.name)) return *engine;
  std::string names;
  for (const std::string& name : isas()) names += (names.empty() ? "" : ", ") + name;
  throw std::runtime_error("LSTM_FUSED_ISA is \"" + std::string(wanted) + "\", but this machine runs " +
                           names);
}

}  // namespace

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const auto& [engine, runs] : candidates)
    if (runs) names.emplace_back(engine->isa.name);
  return names;
}

const Isa* isa_of(const std::string& name) {
  for (const auto& [engine, _] : candidates)
    if (name == engine->isa.name) return &engine->isa;
  return nullptr;
}

int64_t l2_bytes() {
  static const int64_t bytes = [] {
    int64_t found = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return found > 0 ? found : default_l2_bytes;
  }();
  return bytes;
}

bool on_intel() {
#ifdef __x86_64__
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

const Engine& engine() {
  static const Engine& chosen = choose();
  return chosen;
}

}  // namespace lstm_fused
