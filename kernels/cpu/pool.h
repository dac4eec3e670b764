// The library's threads: one pool a process, asleep when there is nothing to do.
#pragma once
#include <cstdint>

namespace moespac {

// 0, or an errno from pinning. The calling thread is pinned to the first of `cpus`.
int configure(int threads, const int32_t* cpus);
int threads();
// One call at a time computes; others wait.
void lock();
void unlock();
struct Locked {
  Locked() { lock(); }
  ~Locked() { unlock(); }
};
// Threads of the pool, the caller's among them. Under lock().
int pool_size();
// Runs task(context, i) for every i < n, on the caller's thread and the pool's; returns when all are done. Under lock().
void run(int64_t n, void (*task)(void* context, int64_t i), void* context);

}  // namespace moespac
