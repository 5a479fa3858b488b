// Calls a kernel with what PyTorch bound to its buffers and the thread's position in what its attributes
// name.
#pragma once
#include "matrix.h"

namespace emulation {

// What a parameter gets: a buffer, by number, or a field of Thread, by its offset.
struct Binding {
  bool field;
  size_t at;
};

template <class T>
struct Element {
  static constexpr char code = Same<T, half>::value ? 'h' : Same<T, bfloat>::value ? 'b' : Code<T>::value;
  static constexpr uint32_t size = sizeof(T);
};
template <class T, int N>
struct Element<metal::vec<T, N>> : Element<T> {};
template <>
struct Element<void> {
  static constexpr char code = '?';
  static constexpr uint32_t size = 1;
};

template <class T>
struct Argument {  // by value: an attribute
  static constexpr Parameter parameter{'v', 'i', sizeof(T), sizeof(T), true};
  UNSEEN static T get(const Binding& binding, void* const*) {
    const auto* here = reinterpret_cast<const char*>(&emulation::thread());
    return from(reinterpret_cast<const uint32_t*>(here + binding.at), T());
  }
  template <class S>
  UNSEEN static S from(const uint32_t* field, S) {
    return S(field[0]);
  }
  template <class S>
  UNSEEN static metal::vec<S, 2> from(const uint32_t* f, metal::vec<S, 2>) {
    return {S(f[0]), S(f[1])};
  }
  template <class S>
  UNSEEN static metal::vec<S, 3> from(const uint32_t* f, metal::vec<S, 3>) {
    return {S(f[0]), S(f[1]), S(f[2])};
  }
};
template <class T>
struct Argument<T*> {
  using E = Element<typename Plain<T>::type>;
  static constexpr Parameter parameter{'p', E::code, E::size, E::size,
                                       !Same<T, typename Plain<T>::type>::value};
  UNSEEN static T* get(const Binding& binding, void* const* arguments) {
    return static_cast<T*>(arguments[binding.at]);
  }
};
template <class T>
struct Argument<T&> {
  using E = Element<typename Plain<T>::type>;
  static constexpr Parameter parameter{'r', E::code, sizeof(T), E::size,
                                       !Same<T, typename Plain<T>::type>::value};
  UNSEEN static T& get(const Binding& binding, void* const* arguments) {
    return *static_cast<T*>(arguments[binding.at]);
  }
};

template <class... P, size_t... I>
inline void call(void (*kernel)(P...), const Binding* bindings, void* const* arguments, Indices<I...>) {
  kernel(Argument<P>::get(bindings[I], arguments)...);
}
template <class... P>
inline void call(void (*kernel)(P...), const Binding* bindings, void* const* arguments) {
  call(kernel, bindings, arguments, typename Count<sizeof...(P)>::type());
}

template <class... P>
inline int describe(void (*)(P...), Parameter* out) {
  const Parameter all[] = {Argument<P>::parameter...};
  for (size_t i = 0; i < sizeof...(P); i++) out[i] = all[i];
  return sizeof...(P);
}

// A threadgroup variable.
#ifdef METAL_ADDRESS_SPACES
template <class T, int SITE>
T& shared();
#else
template <class T, int SITE>
inline T& shared() {
  static const char key = 0;
  return *static_cast<T*>(emulation::shared(&key, sizeof(T), alignof(T)));
}
#endif

}  // namespace emulation
