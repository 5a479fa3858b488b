// oneDNN's own LSTM primitive, with its peepholes: one float32 layer in one direction, called by
// with_onednn.py.

#include <cstdint>
#include <cstring>
#include <exception>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

using dnnl::memory;
using dnnl::prop_kind;
using Dims = memory::dims;
using Arguments = std::unordered_map<int, memory>;

constexpr auto F32 = memory::data_type::f32;
constexpr auto DIRECTION = dnnl::rnn_direction::unidirectional_left2right;

memory::desc dense(const Dims& sizes) {
  Dims strides(sizes.size(), 1);
  for (size_t k = sizes.size() - 1; k > 0; --k) strides[k - 1] = strides[k] * sizes[k];
  return {sizes, F32, strides};
}

memory::desc free_layout(const Dims& sizes) { return {sizes, F32, memory::format_tag::any}; }

// Sizes of what the primitive takes; its gates are in our order, i f g o.
struct Shapes {
  memory::dim T, B, I, H;

  Dims x() const { return {T, B, I}; }
  Dims y() const { return {T, B, H}; }
  Dims states() const { return {1, 1, B, H}; }
  Dims weight(memory::dim inputs) const { return {1, 1, inputs, 4, H}; }
  Dims bias() const { return {1, 1, 4, H}; }
  Dims peephole() const { return {1, 1, 3, H}; }

  // weight [4H, inputs], row by row, as the primitive indexes it.
  memory::desc rows(memory::dim inputs) const {
    return {weight(inputs), F32, {4 * H * inputs, 4 * H * inputs, 1, H * inputs, inputs}};
  }
};

class Layer {
 public:
  Layer(const Shapes& shapes, float** given)
      : shapes_(shapes),
        weights_{wrap(shapes.rows(shapes.I), given[3]), wrap(shapes.rows(shapes.H), given[4])},
        inference_(forward(prop_kind::forward_inference)),
        training_(forward(prop_kind::forward_training)),
        backward_(engine_, prop_kind::backward, DIRECTION, dense(shapes.x()), dense(shapes.states()),
                  dense(shapes.states()), free_layout(shapes.weight(shapes.I)),
                  free_layout(shapes.weight(shapes.H)), dense(shapes.peephole()), dense(shapes.bias()),
                  dense(shapes.y()), dense(shapes.states()), dense(shapes.states()), dense(shapes.x()),
                  dense(shapes.states()), dense(shapes.states()), free_layout(shapes.weight(shapes.I)),
                  free_layout(shapes.weight(shapes.H)), dense(shapes.peephole()), dense(shapes.bias()),
                  dense(shapes.y()), dense(shapes.states()), dense(shapes.states()), training_),
        workspace_(training_.workspace_desc(), engine_) {
    inputs_ = {
        {DNNL_ARG_SRC_LAYER, wrap(dense(shapes.x()), given[0])},
        {DNNL_ARG_SRC_ITER, wrap(dense(shapes.states()), given[1])},
        {DNNL_ARG_SRC_ITER_C, wrap(dense(shapes.states()), given[2])},
        {DNNL_ARG_BIAS, wrap(dense(shapes.bias()), given[5])},
        {DNNL_ARG_WEIGHTS_PEEPHOLE, wrap(dense(shapes.peephole()), given[6])},
    };
    gradients_ = {
        {DNNL_ARG_DIFF_DST_LAYER, wrap(dense(shapes.y()), given[7])},
        {DNNL_ARG_DIFF_DST_ITER, wrap(dense(shapes.states()), given[8])},
        {DNNL_ARG_DIFF_DST_ITER_C, wrap(dense(shapes.states()), given[9])},
    };
    packed_ = pack(inference_);  // once: weights do not change between calls that do not learn
  }

  // y, h_n and c_n.
  void infer(float** outputs) {
    dnnl::lstm_forward(inference_).execute(stream_, all({inputs_, packed_, wrap_outputs(outputs)}));
    stream_.wait();
  }

  // Those, and the gradients of x, h0, c0, weight_ih, weight_hh, bias and peephole.
  void train(float** outputs) {
    const Arguments found = wrap_outputs(outputs);
    const Arguments kept = {{DNNL_ARG_WORKSPACE, workspace_}};
    dnnl::lstm_forward(training_).execute(stream_, all({inputs_, pack(training_), found, kept}));

    memory d_weight_ih(backward_.diff_weights_layer_desc(), engine_);
    memory d_weight_hh(backward_.diff_weights_iter_desc(), engine_);
    const Arguments wanted = {
        {DNNL_ARG_DIFF_SRC_LAYER, wrap(dense(shapes_.x()), outputs[3])},
        {DNNL_ARG_DIFF_SRC_ITER, wrap(dense(shapes_.states()), outputs[4])},
        {DNNL_ARG_DIFF_SRC_ITER_C, wrap(dense(shapes_.states()), outputs[5])},
        {DNNL_ARG_DIFF_WEIGHTS_LAYER, d_weight_ih},
        {DNNL_ARG_DIFF_WEIGHTS_ITER, d_weight_hh},
        {DNNL_ARG_DIFF_BIAS, wrap(dense(shapes_.bias()), outputs[8])},
        {DNNL_ARG_DIFF_WEIGHTS_PEEPHOLE, wrap(dense(shapes_.peephole()), outputs[9])},
    };
    clear(wanted);  // the primitive adds to them
    dnnl::lstm_backward(backward_).execute(stream_,
                                           all({inputs_, pack(backward_), found, kept, gradients_, wanted}));
    copy(d_weight_ih, wrap(shapes_.rows(shapes_.I), outputs[6]));
    copy(d_weight_hh, wrap(shapes_.rows(shapes_.H), outputs[7]));
    stream_.wait();
  }

 private:
  dnnl::lstm_forward::primitive_desc forward(prop_kind kind) {
    return {engine_,
            kind,
            DIRECTION,
            dense(shapes_.x()),
            dense(shapes_.states()),
            dense(shapes_.states()),
            free_layout(shapes_.weight(shapes_.I)),
            free_layout(shapes_.weight(shapes_.H)),
            dense(shapes_.peephole()),
            dense(shapes_.bias()),
            dense(shapes_.y()),
            dense(shapes_.states()),
            dense(shapes_.states())};
  }

  memory wrap(const memory::desc& desc, float* data) { return {desc, engine_, data}; }

  void copy(memory from, memory to) { dnnl::reorder(from, to).execute(stream_, from, to); }

  // The weights in the layout that a primitive has chosen.
  template <typename Desc>
  Arguments pack(const Desc& desc) {
    memory weight_ih(desc.weights_layer_desc(), engine_), weight_hh(desc.weights_iter_desc(), engine_);
    copy(weights_[0], weight_ih);
    copy(weights_[1], weight_hh);
    return {{DNNL_ARG_WEIGHTS_LAYER, weight_ih}, {DNNL_ARG_WEIGHTS_ITER, weight_hh}};
  }

  Arguments wrap_outputs(float** outputs) {
    return {{DNNL_ARG_DST_LAYER, wrap(dense(shapes_.y()), outputs[0])},
            {DNNL_ARG_DST_ITER, wrap(dense(shapes_.states()), outputs[1])},
            {DNNL_ARG_DST_ITER_C, wrap(dense(shapes_.states()), outputs[2])}};
  }

  static void clear(const Arguments& arguments) {
    for (const auto& [name, value] : arguments) {
      std::memset(value.get_data_handle(), 0, value.get_desc().get_size());
    }
  }

  static Arguments all(const std::vector<Arguments>& parts) {
    Arguments merged;
    for (const Arguments& part : parts) merged.insert(part.begin(), part.end());
    return merged;
  }

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  Shapes shapes_;
  memory weights_[2];
  dnnl::lstm_forward::primitive_desc inference_, training_;
  dnnl::lstm_backward::primitive_desc backward_;
  memory workspace_;
  Arguments inputs_, gradients_, packed_;
};

}  // namespace

extern "C" {

// Make a layer in `layer`; else return why not.
// given: x, h0, c0, weight_ih, weight_hh, the sum of the biases, peephole, and the gradients of y, h_n, c_n;
// all of them have to outlive the layer.
const char* make(std::int64_t T, std::int64_t B, std::int64_t I, std::int64_t H, float** given,
                 Layer** layer) {
  static std::string reason;
  try {
    *layer = new Layer({T, B, I, H}, given);
    return nullptr;
  } catch (const std::exception& error) {
    reason = error.what();
    return reason.c_str();
  }
}

void infer(Layer* layer, float** outputs) { layer->infer(outputs); }

void train(Layer* layer, float** outputs) { layer->train(outputs); }
}
