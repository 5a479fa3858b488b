// What is needed of <type_traits> and <utility>, whose headers may declare ::exp and ::fabs, which Metal has
// not.
#pragma once
#include <stddef.h>

namespace emulation {

template <bool, class T = void>
struct Enable {};
template <class T>
struct Enable<true, T> {
  typedef T type;
};
template <bool CONDITION, class T = void>
using enable_if = typename Enable<CONDITION, T>::type;

template <class A, class B>
struct Same {
  static constexpr bool value = false;
};
template <class A>
struct Same<A, A> {
  static constexpr bool value = true;
};

template <class T>
struct Plain {
  typedef T type;
};
template <class T>
struct Plain<const T> {
  typedef T type;
};

// Codes of arithmetic types: i(nteger), f(loat), ? (another).
template <class T>
struct Code {
  static constexpr char value = '?';
};
#define CODE(T, C)                   \
  template <>                        \
  struct Code<T> {                   \
    static constexpr char value = C; \
  };
CODE(bool, 'i')
CODE(char, 'i')
CODE(signed char, 'i')
CODE(unsigned char, 'i')
CODE(short, 'i')
CODE(unsigned short, 'i')
CODE(int, 'i')
CODE(unsigned, 'i')
CODE(long, 'i')
CODE(unsigned long, 'i')
CODE(__typeof__(1.0f), 'f')
CODE(__typeof__(1.0), 'f')
CODE(__typeof__(1.0L), 'f')
#undef CODE

template <size_t...>
struct Indices {};
template <size_t N, size_t... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <size_t... I>
struct Count<0, I...> {
  typedef Indices<I...> type;
};

}  // namespace emulation
