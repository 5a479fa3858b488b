// Tests csrc/runtime/ without OpenMP and torch: teams of our own threads, as many callers as there may be,
// forks, and memory that is used again.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "runtime/memory.h"
#include "runtime/threads.h"

namespace {

using lstm_fused::Team;

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::_Exit(1);
}

// A call as the engine makes it: steps in which every thread reads what the others wrote in the last one.
void sum_in_steps(int threads, int steps) {
  std::vector<long> values(static_cast<size_t>(2 * threads), 1);
  std::vector<int> calls(static_cast<size_t>(threads), 0);
  lstm_fused::run(threads, [&](const Team& team) {
    check(team.size == threads, "a team has the size that was asked for");
    ++calls[static_cast<size_t>(team.rank)];
    for (int n = 0; n < steps; ++n) {
      const long* from = values.data() + n % 2 * threads;
      long sum = 0;
      for (int i = 0; i < threads; ++i) sum += from[i];
      values[static_cast<size_t>((n + 1) % 2 * threads + team.rank)] = sum % 1009 + team.rank;
      if (team.size > 1) team.barrier->wait(team.size);
    }
  });
  std::vector<long> expected(static_cast<size_t>(threads), 1);
  for (int n = 0; n < steps; ++n) {
    long sum = 0;
    for (long value : expected) sum += value;
    for (int i = 0; i < threads; ++i) expected[static_cast<size_t>(i)] = sum % 1009 + i;
  }
  for (int i = 0; i < threads; ++i) {
    check(calls[static_cast<size_t>(i)] == 1, "every rank runs once");
    check(values[static_cast<size_t>(steps % 2 * threads + i)] == expected[static_cast<size_t>(i)], "sums");
  }
}

void sizes() {
  for (int threads : {1, 2, 3, 8, 2, 1, 64, 4}) sum_in_steps(threads, 20);
}

void many_calls() {
  for (int n = 0; n < 2000; ++n) sum_in_steps(2 + n % 2, 3);
}

void after_sleep() {
  for (int n = 0; n < 5; ++n) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    sum_in_steps(3, 3);
  }
}

void same_threads() {
  const auto members = [](int threads) {
    std::vector<std::thread::id> ids(static_cast<size_t>(threads));
    lstm_fused::run(
        threads, [&](const Team& team) { ids[static_cast<size_t>(team.rank)] = std::this_thread::get_id(); });
    return ids;
  };
  const auto three = members(3), two = members(2);
  check(three[0] == std::this_thread::get_id(), "rank 0 is the caller");
  check(two[0] == three[0] && two[1] == three[1] && members(3) == three, "a rank keeps its thread");
}

void concurrent() {
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 6; ++caller)
    callers.emplace_back([caller] {
      for (int n = 0; n < 50; ++n) sum_in_steps(1 + (caller + n) % 4, 5);
    });
  for (std::thread& caller : callers) caller.join();
}

void nested() {
  lstm_fused::run(3, [](const Team&) { sum_in_steps(3, 5); });
}

template <class Body>
void in_child(Body body) {
  const pid_t pid = fork();
  if (pid == 0) {
    alarm(60);
    body();
    std::_Exit(0);
  }
  int status = 1;
  check(waitpid(pid, &status, 0) == pid && status == 0, "a forked child");
}

void forked() {
  sum_in_steps(4, 5);
  for (int n = 0; n < 5; ++n) {
    in_child([] {
      sum_in_steps(4, 5);
      in_child([] { sum_in_steps(3, 5); });
      sum_in_steps(5, 5);
    });
    sum_in_steps(4, 5);
  }
}

void forked_during_calls() {
  std::atomic<bool> stop{false};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller)
    callers.emplace_back([&] {
      while (!stop) sum_in_steps(2, 0);
    });
  for (int n = 0; n < 100; ++n) in_child([] { sum_in_steps(3, 5); });
  stop = true;
  for (std::thread& caller : callers) caller.join();
}

// The process ends while a detached thread makes calls.
void exits_during_calls() {
  std::thread([] {
    for (;;) sum_in_steps(3, 5);
  }).detach();
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
}

// Stacks of 8 MB beyond the limit cannot be mapped.
void limited() {
  const rlimit limit{256 << 20, 256 << 20};
  check(setrlimit(RLIMIT_AS, &limit) == 0, "setrlimit");
  std::atomic<int> size{0}, members{0};
  for (int n = 0; n < 3; ++n) {
    members = 0;
    lstm_fused::run(256, [&](const Team& team) {
      size = team.size;
      team.barrier->wait(team.size);
      ++members;
    });
    check(1 < size && size < 256 && members == size, "a smaller team");
  }
}

bool all_bits_set(const lstm_fused::Block& block) {
  const auto* bytes = static_cast<const unsigned char*>(block.data);
  return std::all_of(bytes, bytes + block.bytes, [](unsigned char byte) { return byte == 0xff; });
}

void memory_is_used_again() {
  using namespace lstm_fused;
  const Block first = take_block(pool_min_bytes), second = take_block(pool_min_bytes);
  check(first.data != second.data && first.bytes >= pool_min_bytes, "each caller has a block of its own");
  check(reinterpret_cast<uintptr_t>(first.data) % 64 == 0, "alignment");
  std::memset(first.data, 1, first.bytes);
  give_block(first);
  const Block again = take_block(pool_min_bytes + 1 < first.bytes ? pool_min_bytes + 1 : pool_min_bytes);
  check(again.data == first.data, "the block that was given back");
  check(!all_bits_set(again), "memory stays as it is");
  give_block(again);
  fill_new_memory(true);
  for (const size_t bytes : {size_t{64}, pool_min_bytes, huge_page_bytes}) {
    const Block block = take_block(bytes);
    check(all_bits_set(block), "filled on demand");
    give_block(block);
  }
}

void memory_by_many_threads() {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([t] {
      for (int n = 0; n < 500; ++n) {
        const lstm_fused::Block block = lstm_fused::take_block(lstm_fused::pool_min_bytes * (1 + n % 3));
        auto* bytes = static_cast<char*>(block.data);
        bytes[0] = bytes[block.bytes - 1] = static_cast<char>(t);
        check(bytes[0] == t && bytes[block.bytes - 1] == t, "no block has two users");
        lstm_fused::give_block(block);
      }
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main(int count, char** names) {
  const struct {
    const char* name;
    void (*test)();
  } tests[] = {{"sizes", sizes},
               {"many_calls", many_calls},
               {"after_sleep", after_sleep},
               {"same_threads", same_threads},
               {"concurrent", concurrent},
               {"nested", nested},
               {"limited", limited},
               {"forked", forked},
               {"forked_during_calls", forked_during_calls},
               {"exits_during_calls", exits_during_calls},
               {"memory_is_used_again", memory_is_used_again},
               {"memory_by_many_threads", memory_by_many_threads}};
  for (const auto& [name, test] : tests)
    if (count == 2 && std::strcmp(names[1], name) == 0) return test(), 0;
  std::fprintf(stderr, "no such test\n");
  return 2;
}
