// simdgroup_matrix: two elements of an 8 by 8 matrix in each of 32 lanes.
#pragma once
#include "simdgroup.h"

// Not inlined, and not seen by the detection of races: touch() notes their accesses, as which lane makes
// which is left open by Metal. ThreadSanitizer itself sees those of the lane.
#ifdef METAL_RACES
#define WHOLE_SIMDGROUP UNSEEN
#else
#define WHOLE_SIMDGROUP inline
#endif

namespace metal {

template <class T, int COLUMNS, int ROWS>
struct simdgroup_matrix {
  static_assert(COLUMNS == 8 && ROWS == 8, "Metal has 8 by 8 only");
  T elements[2];  // of row(), at column() and the next

  // NaN, as what it holds is undefined.
  simdgroup_matrix() { __builtin_memset(this, 0xff, sizeof *this); }
  explicit simdgroup_matrix(T diagonal) {
    for (uint i = 0; i < 2; i++) elements[i] = row() == column() + i ? diagonal : T(0);
  }

  // Apple's layout. Kernels cannot see it.
  static uint row() { return (emulation_lanes::mine() / 4 & 4) + (emulation_lanes::mine() / 2 & 3); }
  static uint column() { return (emulation_lanes::mine() / 4 & 2) * 2 + (emulation_lanes::mine() & 1) * 2; }
  static uint lane_of(uint row, uint column) {
    return (row & 4) * 4 + (column & 4) * 2 + (row & 3) * 2 + (column / 2 & 1);
  }
};

typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int COLUMNS, int ROWS>
inline simdgroup_matrix<T, COLUMNS, ROWS> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, COLUMNS, ROWS> m;
  m.elements[0] = m.elements[1] = value;
  return m;
}

namespace emulation_lanes {

// Where this lane's first element is in memory, and how far the second is from it.
struct Place {
  ulong first, step;
};
template <class M>
inline Place place(ulong stride, ulong2 origin, bool transpose) {
  ulong row = M::row(), column = M::column();
  if (transpose) return {column * stride + row, stride};
  return {(origin.y + row) * stride + origin.x + column, 1};
}

template <class P>
inline void together(P start, ulong stride, ulong2 origin, bool transpose, bool write, int line) {
  emulation::convergent(line);
  if (transpose && (origin.x || origin.y))
    emulation::fail("line %d: a transposed matrix with an origin", line);
#ifdef METAL_RACES
  for (uint row = 0; row < 8; row++)
    emulation::touch((const void*)(start + (origin.y + row) * stride + origin.x), 8 * sizeof *start, write,
                     line);
#endif
}

}  // namespace emulation_lanes

#define LOADS_AND_STORES(SPACE)                                                                              \
  template <class T>                                                                                         \
  WHOLE_SIMDGROUP void simdgroup_load(simdgroup_matrix<T, 8, 8>& m, const SPACE T* source, ulong stride = 8, \
                                      ulong2 origin = ulong2(0), bool transpose = false, HERE) {             \
    emulation_lanes::together(source, stride, origin, transpose, false, line);                               \
    auto at = emulation_lanes::place<simdgroup_matrix<T, 8, 8>>(stride, origin, transpose);                  \
    for (uint i = 0; i < 2; i++) m.elements[i] = source[at.first + i * at.step];                             \
  }                                                                                                          \
  template <class T>                                                                                         \
  WHOLE_SIMDGROUP void simdgroup_store(simdgroup_matrix<T, 8, 8> m, SPACE T* target, ulong stride = 8,       \
                                       ulong2 origin = ulong2(0), bool transpose = false, HERE) {            \
    emulation_lanes::together(target, stride, origin, transpose, true, line);                                \
    auto at = emulation_lanes::place<simdgroup_matrix<T, 8, 8>>(stride, origin, transpose);                  \
    for (uint i = 0; i < 2; i++) target[at.first + i * at.step] = m.elements[i];                             \
  }
#ifdef METAL_ADDRESS_SPACES
LOADS_AND_STORES(__attribute__((address_space(1))))
LOADS_AND_STORES(__attribute__((address_space(3))))
#else
LOADS_AND_STORES()
#endif
#undef LOADS_AND_STORES

namespace emulation_lanes {

// What a lane has of the operands of a product.
template <class D, class A, class B>
struct Operands {
  A a[2];
  B b[2];
  D c[2];
};

// All of a b + c, as the lanes published them; terms are added in the order of k.
template <class D, class A, class B>
UNSEEN void product(const char* slots, float (*sums)[8]) {
  typedef simdgroup_matrix<D, 8, 8> M;
  float a[8][8], b[8][8];
  for (uint row = 0; row < 8; row++)
    for (uint column = 0; column < 8; column += 2) {
      const auto lane = published<Operands<D, A, B>>(slots, M::lane_of(row, column));
      for (uint i = 0; i < 2; i++) {
        a[row][column + i] = float(lane.a[i]);
        b[row][column + i] = float(lane.b[i]);
        sums[row][column + i] = float(lane.c[i]);
      }
    }
  for (uint row = 0; row < 8; row++)
    for (uint k = 0; k < 8; k++)
      for (uint column = 0; column < 8; column++) sums[row][column] += a[row][k] * b[k][column];
}

// A lane's share of the product.
template <class D>
UNSEEN void share_of(const float (*sums)[8], D (&elements)[2]) {
  typedef simdgroup_matrix<D, 8, 8> M;
  for (uint i = 0; i < 2; i++) elements[i] = D(sums[M::row()][M::column() + i]);
}

}  // namespace emulation_lanes

// d = a b + c
template <class D, class A, class B>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                                          simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<D, 8, 8> c, HERE) {
  emulation_lanes::Operands<D, A, B> mine = {
      {a.elements[0], a.elements[1]}, {b.elements[0], b.elements[1]}, {c.elements[0], c.elements[1]}};
  static_assert(sizeof mine <= emulation::SLOT, "");
  const char* slots = emulation::exchange(&mine, sizeof mine, line);
  bool first;
  auto* sums = static_cast<float (*)[8]>(emulation::result(first));
  if (first) emulation_lanes::product<D, A, B>(slots, sums);
  emulation_lanes::share_of(sums, d.elements);
}

template <class D, class A, class B>
inline void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                               simdgroup_matrix<B, 8, 8> b, HERE) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0)), line);
}

}  // namespace metal
