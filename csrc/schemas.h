// The schemas of the engine's operators: those of lstm_fused/contract.py, which tests/test_contract.py
// compares.
#pragma once

namespace lstm_fused {

inline constexpr char forward_schema[] =
    "cpp_forward(Tensor x, Tensor? weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor? "
    "peephole, Tensor? weight_hr, Tensor h0, Tensor c0, Tensor? lengths, bool reverse, bool save, Tensor? "
    "gain_hh=None, Tensor? h_mask=None, Tensor? zoneout_h=None, Tensor? zoneout_c=None, float? "
    "cell_clip=None) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor c, Tensor gates)";

inline constexpr char backward_schema[] =
    "cpp_backward(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor c, Tensor gates, Tensor c0, Tensor "
    "weight_hh, Tensor? peephole, Tensor? weight_hr, Tensor? lengths, bool reverse, Tensor? "
    "gain_hh=None, Tensor? h_mask=None, Tensor? zoneout_h=None, Tensor? zoneout_c=None, float? "
    "cell_clip=None, Tensor? hw=None) -> (Tensor dxw, Tensor dh0, Tensor dc0, Tensor dbias, Tensor "
    "dpeephole, Tensor dhw)";

inline constexpr char products_schema[] =
    "cpp_products(Tensor dxw, Tensor? dhw, Tensor? x, Tensor? weight_ih, Tensor? y, Tensor? h0, "
    "Tensor? lengths, bool reverse) -> (Tensor dx, Tensor dweight_ih, Tensor dweight_hh)";

inline constexpr char gradients_schema[] =
    "cpp_gradients(Tensor? x, Tensor? weight_ih, Tensor? y, Tensor? h0, Tensor? dy, Tensor? dh_n, Tensor? "
    "dc_n, Tensor c, Tensor gates, Tensor c0, Tensor weight_hh, Tensor? peephole, Tensor? weight_hr, Tensor? "
    "lengths, bool reverse, Tensor? gain_hh=None, Tensor? h_mask=None, Tensor? zoneout_h=None, Tensor? "
    "zoneout_c=None, float? cell_clip=None, Tensor? hw=None) -> (Tensor dx, Tensor dweight_ih, Tensor "
    "dweight_hh, Tensor dh0, Tensor dc0, Tensor dbias, Tensor dpeephole)";

}  // namespace lstm_fused
