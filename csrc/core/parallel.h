// CPU threads for the kernels: a small pool of our own. Not OpenMP, since torch brings its own libgomp and two OpenMP
// runtimes in one process oversubscribe each other.
#pragma once

#include <cstdint>
#include <functional>

namespace webssl {

// Calls fn(task) once for each task in [0, num_tasks), on the caller and at most num_threads - 1 pool threads. Which
// thread runs which task is not determined: results must depend on the task alone. Rethrows the first exception.
// May be called from several threads at once; a call from inside a task runs serially.
void parallel_for(int64_t num_tasks, int num_threads, const std::function<void(int64_t)>& fn);

}  // namespace webssl
