// Runs a call on a team of threads, and divides rows and channels among them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>

namespace lstm_fused {

// Spins, then sleeps: a step is shorter than putting a thread to sleep. It does not yield: a thread that
// yields to another process waits for the end of that one's time slice, 3 ms, and a thread that is woken does
// not.
class Barrier {
 public:
  explicit Barrier(int polls) : polls_(polls) {}

  void wait(int threads);

 private:
  int polls_;  // before it sleeps
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> generation_{0};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

// One thread's view of the team that runs a call.
struct Team {
  int rank;
  int size;          // threads that run, at most as many as were asked for
  Barrier* barrier;  // null: there is one thread
};

// Runs the body on up to `threads` threads at the same time, and returns when all are done.
void run(int threads, const std::function<void(const Team&)>& body);

// One thread's share of the work: either rows of its own, or all rows, whose channels the team's threads
// split.
struct Slice {
  int64_t row_begin, row_end;
  int rank, size;  // of the threads that split the channels
  Barrier* barrier;

  // Waits for the other threads that split the channels, if there are any. A plain layer syncs once per step.
  // A projection adds one sync per step, layer norm two in the forward and one in the backward pass, a
  // hoisted input GEMM one per x_steps steps.
  void sync() const {
    if (size > 1) barrier->wait(size);
  }
  // This thread's share [begin, end) of n items that these threads split.
  int64_t begin(int64_t n) const { return n * rank / size; }
  int64_t end(int64_t n) const { return n * (rank + 1) / size; }
};

// All rows, whose channels all threads split.
inline Slice whole(const Team& team) { return {0, 0, team.rank, team.size, team.barrier}; }

// Splits B rows if there are at least min_rows_per_thread for each thread, else, or if that is 0, the
// channels. With lengths, [B] or null, threads get about as many steps instead of as many rows.
Slice slice(const Team& team, int64_t B, int64_t min_rows_per_thread, const int64_t* lengths);

}  // namespace lstm_fused
