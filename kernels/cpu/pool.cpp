#include "pool.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace moespac {
namespace {

// How long a thread looks for work before it sleeps: about as long as waking it takes. Longer would take the core from
// other processes, which on the machines this is made for have work of their own.
constexpr auto kSpin = std::chrono::microseconds(30);

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Done>
bool spin(Done done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

struct Pool {
  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable work, finished;
  // The job at hand, written under `mutex` before its generation is. A ticket is (generation, next index): whoever draws
  // one of the current generation knows that the job lives until the task is done.
  void (*task)(void*, int64_t) = nullptr;
  void* context = nullptr;
  int64_t n = 0;
  std::atomic<uint64_t> ticket{0};
  std::atomic<uint32_t> generation{0};
  std::atomic<int64_t> done{0};
  bool ending = false;
  pid_t owner = getpid();
  int size = 1;

  void draw(uint32_t mine, void (*t)(void*, int64_t), void* c, int64_t count) {
    for (;;) {
      uint64_t seen = ticket.load(std::memory_order_acquire);
      const int64_t index = static_cast<uint32_t>(seen);
      if (static_cast<uint32_t>(seen >> 32) != mine || index >= count) return;
      if (!ticket.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
      t(c, index);
      if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
        std::lock_guard<std::mutex> held(mutex);
        finished.notify_one();
      }
    }
  }

  void serve(uint32_t seen) {
    for (;;) {
      spin([&] { return generation.load(std::memory_order_acquire) != seen; });
      std::unique_lock<std::mutex> held(mutex);
      work.wait(held, [&] { return ending || generation.load() != seen; });
      if (ending) return;
      seen = generation.load();
      const auto t = task;
      const auto c = context;
      const auto count = n;
      held.unlock();
      draw(seen, t, c, count);
    }
  }

  void end() {
    {
      std::lock_guard<std::mutex> held(mutex);
      ending = true;
    }
    work.notify_all();
    for (auto& worker : workers) worker.join();
  }
};

std::mutex calls;
Pool* pool = nullptr;

int pin(pthread_t thread, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (cpu < 0 || cpu >= CPU_SETSIZE) return EINVAL;
  CPU_SET(cpu, &set);
  return pthread_setaffinity_np(thread, sizeof set, &set);
}

Pool* current() {
  // A forked child has no threads but the one that forked: it starts with a pool of its own, and the parent's is left
  // alone, for its locks may be held by threads that are not here.
  if (pool == nullptr || pool->owner != getpid()) pool = new Pool;
  return pool;
}

}  // namespace

int configure(int threads, const int32_t* cpus) {
  if (threads < 1 || threads > 1024) return EINVAL;
  std::lock_guard<std::mutex> held(calls);
  Pool* old = current();
  old->end();
  delete old;
  pool = new Pool;
  pool->size = threads;
  int failed = cpus == nullptr ? 0 : pin(pthread_self(), cpus[0]);
  for (int i = 1; i < threads; ++i) {
    pool->workers.emplace_back([p = pool] { p->serve(0); });
    if (cpus != nullptr && failed == 0) failed = pin(pool->workers.back().native_handle(), cpus[i]);
  }
  return failed;
}

int threads() {
  std::lock_guard<std::mutex> held(calls);
  return current()->size;
}

int pool_size() { return current()->size; }

void lock() { calls.lock(); }
void unlock() { calls.unlock(); }

void run(int64_t n, void (*task)(void*, int64_t), void* context) {
  Pool* p = current();
  if (p->workers.empty() || n < 2) {
    for (int64_t i = 0; i < n; ++i) task(context, i);
    return;
  }
  uint32_t mine;
  {
    std::lock_guard<std::mutex> held(p->mutex);
    p->task = task;
    p->context = context;
    p->n = n;
    p->done.store(0);
    mine = p->generation.load() + 1;
    p->ticket.store(static_cast<uint64_t>(mine) << 32, std::memory_order_release);
    p->generation.store(mine, std::memory_order_release);
  }
  p->work.notify_all();
  p->draw(mine, task, context, n);
  if (!spin([&] { return p->done.load(std::memory_order_acquire) == n; })) {
    std::unique_lock<std::mutex> held(p->mutex);
    p->finished.wait(held, [&] { return p->done.load() == n; });
  }
}

}  // namespace moespac
