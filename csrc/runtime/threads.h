// The threads of one call, and how they wait for each other.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace lstm_fused {

// Spins, then yields: a step is shorter than putting a thread to sleep, but the machine may be shared.
class Barrier {
 public:
  void wait(int threads);

 private:
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> generation_{0};
};

// One thread's view of the team that runs a call.
struct Team {
  int rank;
  int size;           // threads that really run, never more than were asked for
  Barrier* everyone;  // for all of them
  Barrier* groups;    // [size], one for each group of threads that share their rows
};

// Runs the body on up to `threads` threads of torch's pool at the same time, and returns when all are done.
void run(int threads, const std::function<void(const Team&)>& body);

// One thread's part of the rows, and its place among the threads that share these rows and split the
// channels.
struct Slice {
  int64_t row_begin, row_end;
  int part, parts;
  Barrier* group;

  void sync() const {
    if (parts > 1) group->wait(parts);
  }
  // This thread's share of n things that the group splits.
  int64_t begin(int64_t n) const { return n * part / parts; }
  int64_t end(int64_t n) const { return n * (part + 1) / parts; }
};

// What weights may take of a core's second cache, so that they stay there from step to step.
int64_t near_bytes();

// Splits B rows and their channels over the team. Splitting rows needs no barrier, but every core then reads
// all the weights at every step and register tiles, `tile_rows` high, must be filled by fewer rows.
Slice slice(const Team& team, int64_t B, int64_t weight_bytes, int64_t tile_rows);

}  // namespace lstm_fused
