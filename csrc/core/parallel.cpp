#include "core/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace webssl {
namespace {

struct Job {
  const std::function<void(int64_t)>* fn;
  int64_t num_tasks;
  std::atomic<int64_t> next{0};
  int pending_helpers = 0;  // guarded by the pool's mutex
  std::exception_ptr error;
  std::mutex error_mutex;

  void run() {
    for (int64_t task = next.fetch_add(1); task < num_tasks; task = next.fetch_add(1)) {
      try {
        (*fn)(task);
      } catch (...) {
        std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(num_tasks);
      }
    }
  }
};

thread_local bool inside_task = false;

class Pool {
 public:
  void run(Job& job, int num_helpers) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (num_workers_ < num_helpers) {
        std::thread([this] { work(); }).detach();
        ++num_workers_;
      }
      job.pending_helpers = num_helpers;
      for (int i = 0; i < num_helpers; ++i) queue_.push_back(&job);
    }
    wake_.notify_all();
    inside_task = true;
    job.run();
    inside_task = false;
    std::unique_lock<std::mutex> lock(mutex_);
    // Helpers that have not begun are not waited for: a busy pool must not delay a caller that did the work itself.
    const auto removed = std::remove(queue_.begin(), queue_.end(), &job);
    job.pending_helpers -= static_cast<int>(queue_.end() - removed);
    queue_.erase(removed, queue_.end());
    done_.wait(lock, [&] { return job.pending_helpers == 0; });
  }

 private:
  void work() {
    inside_task = true;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return !queue_.empty(); });
      Job* job = queue_.front();
      queue_.pop_front();
      lock.unlock();
      job->run();
      lock.lock();
      if (--job->pending_helpers == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::deque<Job*> queue_;
  int num_workers_ = 0;
};

// Never destroyed: pool threads may outlive static destructors. A forked child starts with a pool of its own, since
// threads do not survive a fork.
Pool* pool = nullptr;
std::once_flag pool_once;

Pool& global_pool() {
  std::call_once(pool_once, [] {
    pool = new Pool;
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
#endif
  });
  return *pool;
}

}  // namespace

void parallel_for(int64_t num_tasks, int num_threads, const std::function<void(int64_t)>& fn) {
  if (num_tasks <= 0) return;
  const int num_helpers = static_cast<int>(std::min<int64_t>(num_threads, num_tasks)) - 1;
  if (num_helpers <= 0 || inside_task) {
    for (int64_t task = 0; task < num_tasks; ++task) fn(task);
    return;
  }
  Job job;
  job.fn = &fn;
  job.num_tasks = num_tasks;
  global_pool().run(job, num_helpers);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace webssl
