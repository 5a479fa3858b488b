// A fibre is a stack of its own; resume() runs it until it yields. Sanitizers are told about every switch.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#ifdef TELL_THREAD_SANITIZER  // which does not look at the runtime itself
#define FIBRES_TELL_TSAN 1
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
}
#endif
#if defined(__SANITIZE_ADDRESS__)
#define FIBRES_TELL_ASAN 1
extern "C" {
void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* save, const void** bottom, size_t* size);
}
#endif

// Saves what a call must keep on the stack, the stack pointer in *from, and goes on where `to` was saved.
extern "C" void emulation_switch(void** from, void* to);

#if defined(__APPLE__)
#define FIBRE_SYMBOL "_emulation_switch"
#else
#define FIBRE_SYMBOL "emulation_switch"
#endif

namespace emulation {

class Fibre {
 public:
  static constexpr size_t STACK = 256 * 1024;

  Fibre() {
    constexpr size_t guard = 16 * 1024;
    memory_ = static_cast<char*>(
        mmap(nullptr, STACK + guard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(memory_, guard, PROT_NONE);
    bottom_ = memory_ + guard;
  }
  Fibre(const Fibre&) = delete;

  // The next resume() calls body, which must never return.
  void start(void (*body)()) {
#ifdef FIBRES_TELL_TSAN
    if (!tsan_) tsan_ = __tsan_create_fiber(0);
#endif
    auto* top = reinterpret_cast<void**>(bottom_ + STACK);
#if defined(__x86_64__)
    *--top = nullptr;  // the return address of body, which keeps its stack aligned as after a call
    *--top = reinterpret_cast<void*>(body);
    top -= 6;
#elif defined(__aarch64__)
    top -= 20;
    top[11] = reinterpret_cast<void*>(body);  // x30
#else
#error "fibres are written for x86-64 and 64-bit Arm"
#endif
    stack_ = top;
  }

  void resume() {
#ifdef FIBRES_TELL_TSAN
    tsan_scheduler_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(tsan_, 1);  // 1: no synchronisation
#endif
#ifdef FIBRES_TELL_ASAN
    void* save;
    __sanitizer_start_switch_fiber(&save, bottom_, STACK);
#endif
    emulation_switch(&scheduler_, stack_);
#ifdef FIBRES_TELL_ASAN
    __sanitizer_finish_switch_fiber(save, nullptr, nullptr);
#endif
  }

  // In the fibre: back to resume()'s caller.
  void yield() {
#ifdef FIBRES_TELL_TSAN
    __tsan_switch_to_fiber(tsan_scheduler_, 1);
#endif
#ifdef FIBRES_TELL_ASAN
    void* save;
    __sanitizer_start_switch_fiber(&save, asan_bottom_, asan_size_);
#endif
    emulation_switch(&stack_, scheduler_);
#ifdef FIBRES_TELL_ASAN
    __sanitizer_finish_switch_fiber(save, &asan_bottom_, &asan_size_);
#endif
  }

  // The first thing in the fibre.
  void entered() {
#ifdef FIBRES_TELL_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &asan_bottom_, &asan_size_);
#endif
  }

 private:
  char *memory_, *bottom_;
  void *stack_ = nullptr, *scheduler_ = nullptr;
#ifdef FIBRES_TELL_TSAN
  void *tsan_ = nullptr, *tsan_scheduler_ = nullptr;
#endif
#ifdef FIBRES_TELL_ASAN
  const void* asan_bottom_ = nullptr;
  size_t asan_size_ = 0;
#endif
};

}  // namespace emulation
