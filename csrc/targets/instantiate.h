// Instantiates the engine for the instruction set of the including file, targets/<name>.cpp.
//
// Only templates and functions in the set's own namespace may follow that file's target pragma: code shared
// with other files would carry these instructions to machines that lack them.
#include "lstm/backward.h"
#include "lstm/forward.h"
#include "lstm/products.h"

namespace lstm_fused::LSTM_FUSED_ISA {

#define LSTM_FUSED_NAME_OF(isa) #isa
#define LSTM_FUSED_NAME(isa) LSTM_FUSED_NAME_OF(isa)

extern const Engine engine;
const Engine engine = {{LSTM_FUSED_NAME(LSTM_FUSED_ISA), LSTM_FUSED_VECTOR_BYTES, MR, has_amx},
                       forward<float>,
                       forward<double>,
                       forward<BFloat16>,
                       backward<float>,
                       backward<double>,
                       backward<BFloat16>,
                       products<float>,
                       products<double>,
                       products<BFloat16>};

}  // namespace lstm_fused::LSTM_FUSED_ISA
