// Arguments that all kernels share, the activations, and the cell's equations, those of
// lstm_fused/reference.py. library.py puts a preamble in front: `scalar`, the tensors' type; `real`, the type
// of sums and of the cell state; and the tile sizes BB and WIDTH.

// A layer, as 64-bit integers; a size with an 8 is rounded up to whole 8 x 8 tiles. `Layer` in dispatches.py.
struct Layer {
  long T, B, H, P, B8, H8, P8;
  long reverse;
  // Whether there is:
  long peephole, lengths, save, dy, projection, norm, h_mask, zoneout_h, zoneout_c, clip;
  // Strides of the zoneout masks over steps and rows.
  long zoneout_h_t, zoneout_h_b, zoneout_c_t, zoneout_c_b;
};

// A step t, the steps processed before it (`after`) and after it (`before`) in a backward pass, -1 if there
// is none, and which of two buffers holds the operand of its product. `Step` in dispatches.py.
struct Step {
  long t, after, before, parity;
};

// 1 / (1 + exp(-x)); exp may overflow to infinity, which gives 0.
inline real sigmoid(real x) { return precise::divide(real(1), real(1) + precise::exp(-x)); }

// (1 - E) / (1 + E), E = exp(-2 |x|), which cannot overflow and keeps NaN; near zero 1 - E would cancel, so E
// - 1 is a Taylor series there.
inline real tanh_by_exp(real x) {
  const int TERMS = sizeof(real) == 8 ? 17 : 9;
  real r = real(-2) * fabs(x);
  real series = r * (real(1) / real(TERMS)) + real(1);
  for (int n = TERMS - 1; n > 1; --n) {
    series = series * (r * (real(1) / real(n))) + real(1);
  }
  real e = r > real(-0.7f) ? r * series : precise::exp(r) - real(1);
  return precise::divide(x < real(0) ? e : -e, real(2) + e);
}

// c within [-clip, clip]; NaN stays NaN.
inline real clipped(real c, real clip) { return c > clip ? clip : (c < -clip ? -clip : c); }

inline bool is_valid(constant Layer& layer, device const long* lengths, long row, long t) {
  return layer.lengths == 0 || t < lengths[row];
}

// Values [T, B, 4H] of the four gates of a channel lie H apart.
inline long gate_offset(constant Layer& layer, long t, long row, long col) {
  return (t * layer.B + row) * 4 * layer.H + col;
}

// Tensors of the cell's forward pass; unused ones are arbitrary.
struct Forward {
  device const real* xw;           // [T, B, 4H], W_ih x + b
  device const scalar* peephole;   // [3, H]
  device const long* lengths;      // [B]
  device scalar* h;                // [B, P], updated
  device real* c;                  // [B, H], updated
  device scalar* y;                // [T, B, P]
  device real* c_all;              // [T, B, H]
  device scalar* gates_all;        // [T, B, 4H]
  device const scalar* h_mask;     // [B, P]
  device const scalar* zoneout_h;  // [T, B, P]
  device const scalar* zoneout_c;  // [T, B, H]
  device const real* clip;         // [1]
};

// One step of one channel of one row from its four sums W_hh h_{t-1}: updates c, saves, returns o * tanh(c).
inline real cell_forward(thread const Forward& f, constant Layer& layer, long t, long row, long col,
                         thread const real (&sums)[4]) {
  long H = layer.H, state = row * H + col, at = gate_offset(layer, t, row, col);
  real c_prev = f.c[state];
  real a_i = f.xw[at] + sums[0], a_f = f.xw[at + H] + sums[1];
  real a_g = f.xw[at + 2 * H] + sums[2], a_o = f.xw[at + 3 * H] + sums[3];
  if (layer.peephole != 0) {
    a_i += real(f.peephole[col]) * c_prev;
    a_f += real(f.peephole[H + col]) * c_prev;
  }
  real i = sigmoid(a_i), forget = sigmoid(a_f), g = tanh_by_exp(a_g);
  real c = forget * c_prev + i * g;
  if (layer.clip != 0) {
    c = clipped(c, f.clip[0]);
  }
  if (layer.peephole != 0) {
    a_o += real(f.peephole[2 * H + col]) * c;
  }
  real o = sigmoid(a_o);
  real m = o * tanh_by_exp(c);
  if (layer.zoneout_c != 0) {
    real z = real(f.zoneout_c[t * layer.zoneout_c_t + row * layer.zoneout_c_b + col]);
    c = z * c_prev + (real(1) - z) * c;
  }
  bool valid = is_valid(layer, f.lengths, row, t);
  c = valid ? c : c_prev;
  f.c[state] = c;
  if (layer.save != 0) {
    f.c_all[t * layer.B * H + state] = c;
    f.gates_all[at] = valid ? scalar(i) : scalar(0);
    f.gates_all[at + H] = valid ? scalar(forget) : scalar(0);
    f.gates_all[at + 2 * H] = valid ? scalar(g) : scalar(0);
    f.gates_all[at + 3 * H] = valid ? scalar(o) : scalar(0);
  }
  return m;
}

// h times its recurrent dropout mask: the operand of the next product.
inline scalar masked(thread const Forward& f, constant Layer& layer, long state, scalar h) {
  return layer.h_mask != 0 ? scalar(real(h) * real(f.h_mask[state])) : h;
}

// Store a new h as state and output; returns the operand of the next product.
inline scalar store_h(thread const Forward& f, constant Layer& layer, long t, long row, long col, real h) {
  long state = row * layer.P + col;
  scalar h_prev = f.h[state];
  if (layer.zoneout_h != 0) {
    real z = real(f.zoneout_h[t * layer.zoneout_h_t + row * layer.zoneout_h_b + col]);
    h = z * real(h_prev) + (real(1) - z) * h;
  }
  bool valid = is_valid(layer, f.lengths, row, t);
  scalar rounded = valid ? scalar(h) : h_prev;
  f.h[state] = rounded;
  f.y[t * layer.B * layer.P + state] = valid ? rounded : scalar(0);
  return masked(f, layer, state, rounded);
}

// Tensors of the cell's backward pass; unused ones are arbitrary.
struct Backward {
  device const scalar* dy;         // [T, B, P]
  device const real* c_all;        // [T, B, H]
  device const scalar* c0;         // [B, H]
  device const scalar* gates_all;  // [T, B, 4H]
  device const scalar* peephole;   // [3, H]
  device const long* lengths;      // [B]
  device scalar* dxw;              // [T, B, 4H]
  device real* dh;                 // [B, P], updated
  device real* dc;                 // [B, H], updated
  device real* kept;               // [B, P], the gradient that zoneout passes to the step before, updated
  device const scalar* h_mask;     // [B, P]
  device const scalar* zoneout_h;  // [T, B, P]
  device const scalar* zoneout_c;  // [T, B, H]
  device const real* clip;         // [1]
};

// Update d loss / d h_t with the product da W_hh of the step processed before; returns the cell's share of
// it.
inline real h_gradient(thread const Backward& b, constant Layer& layer, long t, long after, long row,
                       long col, real product) {
  long state = row * layer.P + col;
  real dh = b.dh[state];
  if (after >= 0 && is_valid(layer, b.lengths, row, after)) {
    dh = layer.h_mask != 0 ? product * real(b.h_mask[state]) : product;
    dh += layer.zoneout_h != 0 ? b.kept[state] : real(0);
    b.dh[state] = dh;
  }
  if (t < 0) {
    return real(0);
  }
  if (layer.dy != 0) {
    dh += real(b.dy[t * layer.B * layer.P + state]);
  }
  if (layer.zoneout_h != 0) {
    real z = real(b.zoneout_h[t * layer.zoneout_h_t + row * layer.zoneout_h_b + col]);
    b.kept[state] = z * dh;
    dh = (real(1) - z) * dh;
  }
  return dh;
}

// One step back of one channel of one row from d loss / d (o * tanh(c)): updates dc, stores da and returns
// it.
inline void cell_backward(thread const Backward& b, constant Layer& layer, long t, long before, long row,
                          long col, real dm, thread scalar (&da)[4]) {
  long H = layer.H, state = row * H + col, at = gate_offset(layer, t, row, col);
  real i = real(b.gates_all[at]), forget = real(b.gates_all[at + H]);
  real g = real(b.gates_all[at + 2 * H]), o = real(b.gates_all[at + 3 * H]);
  real c_prev = before >= 0 ? b.c_all[before * layer.B * H + state] : real(b.c0[state]);
  real c = b.c_all[t * layer.B * H + state], unclipped = forget * c_prev + i * g;
  real dc_next = b.dc[state], dc = dc_next, passed = real(0);
  if (layer.zoneout_c != 0) {  // then c was saved after zoneout, and is needed from before it
    real z = real(b.zoneout_c[t * layer.zoneout_c_t + row * layer.zoneout_c_b + col]);
    passed = z * dc;
    dc = (real(1) - z) * dc;
    c = layer.clip != 0 ? clipped(unclipped, b.clip[0]) : unclipped;
  }
  real s = tanh_by_exp(c);
  real da_o = dm * s * o * (real(1) - o);
  dc += dm * o * (real(1) - s * s);
  if (layer.peephole != 0) {
    dc += real(b.peephole[2 * H + col]) * da_o;
  }
  if (layer.clip != 0 && fabs(unclipped) > b.clip[0]) {
    dc = real(0);
  }
  real da_i = dc * g * i * (real(1) - i);
  real da_f = dc * c_prev * forget * (real(1) - forget);
  real da_g = dc * i * (real(1) - g * g);
  real dc_prev = dc * forget + passed;
  if (layer.peephole != 0) {
    dc_prev += real(b.peephole[col]) * da_i + real(b.peephole[H + col]) * da_f;
  }
  bool valid = is_valid(layer, b.lengths, row, t);
  b.dc[state] = valid ? dc_prev : dc_next;
  da[0] = valid ? scalar(da_i) : scalar(0);
  da[1] = valid ? scalar(da_f) : scalar(0);
  da[2] = valid ? scalar(da_g) : scalar(0);
  da[3] = valid ? scalar(da_o) : scalar(0);
  for (int gate = 0; gate < 4; ++gate) {
    b.dxw[at + gate * H] = da[gate];
  }
}
