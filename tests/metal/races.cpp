// Placeholder until the detection of races.
#include "races.h"
