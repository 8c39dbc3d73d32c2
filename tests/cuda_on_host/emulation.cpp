#include "emulation.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_on_host {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kPageBytes = 4096;
constexpr size_t kGuardBytes = 1024;
constexpr unsigned char kGuard = 0xA5;
constexpr unsigned char kUndefined = 0xFF;  // NaN as bf16 and as fp32

enum class Wait { kNothing, kWarp, kBlock, kCluster, kDone };

struct Copy {
  void* shared;
  const void* global;
  bool in_bounds;
};

struct Fiber {
  ucontext_t context;
  uint3 thread, block;
  unsigned rank_in_cluster = 0, index_in_block = 0;
  Wait wait = Wait::kNothing;
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> groups;
};

// Lanes that have come to a function of their warp; lanes of other masks may wait for another one meanwhile.
struct Meeting {
  unsigned mask, arrived;
  WarpFunction apply;
  void* data_of_lane[32];
};

struct Warp {
  std::vector<Meeting> meetings;
};

struct Block {
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char[]> memory;
  unsigned char* shared = nullptr;
};

// The blocks that run together.
struct Cluster {
  const Launch* launch;
  const std::function<void()>* body;
  std::vector<Fiber> fibers;
  std::vector<Block> blocks;
  bool copies_land_at_once;
};

Cluster* cluster = nullptr;
Fiber* running = nullptr;
ucontext_t scheduler;
std::exception_ptr failure;

void suspend(Wait wait) {
  running->wait = wait;
  swapcontext(&running->context, &scheduler);
}

Block& own_block() { return cluster->blocks[running->rank_in_cluster]; }
Warp& own_warp() { return own_block().warps[running->index_in_block / 32]; }

void fiber_main() {
  try {
    (*cluster->body)();
  } catch (...) {
    failure = std::current_exception();
  }
  suspend(Wait::kDone);
}

// Stacks are kept for the next launch; below each lies a page that may not be touched.
char* stack(size_t index) {
  static std::vector<char*> stacks;
  while (stacks.size() <= index) {
    void* memory = mmap(nullptr, kStackBytes + kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("emulation: no memory for stacks");
    mprotect(memory, kPageBytes, PROT_NONE);
    stacks.push_back(static_cast<char*>(memory) + kPageBytes);
  }
  return stacks[index];
}

std::string setting(const char* name, const char* otherwise) {
  const char* value = getenv(name);
  return value ? value : otherwise;
}

std::string name_of(const Fiber& fiber) {
  const auto triple = [](uint3 i) {
    return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
  };
  return "thread " + triple(fiber.thread) + " of block " + triple(fiber.block);
}

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error("emulation: " + what); }

// Lets go those who wait for what has now happened; false where nobody may go on.
bool release() {
  bool any = false, cluster_waits = true;
  const size_t block_size = cluster->fibers.size() / cluster->blocks.size();
  for (size_t begin = 0; begin < cluster->fibers.size(); begin += block_size) {
    bool block_waits = true;
    for (size_t i = begin; i < begin + block_size; ++i) {
      const Wait wait = cluster->fibers[i].wait;
      any |= wait == Wait::kNothing;
      block_waits &= wait == Wait::kBlock || wait == Wait::kDone;
      cluster_waits &= wait == Wait::kCluster || wait == Wait::kDone;
    }
    for (size_t i = begin; block_waits && i < begin + block_size; ++i) {
      if (cluster->fibers[i].wait != Wait::kBlock) continue;
      cluster->fibers[i].wait = Wait::kNothing;
      any = true;
    }
  }
  for (size_t i = 0; cluster_waits && i < cluster->fibers.size(); ++i) {
    if (cluster->fibers[i].wait != Wait::kCluster) continue;
    cluster->fibers[i].wait = Wait::kNothing;
    any = true;
  }
  return any;
}

void check_launch(const Launch& launch) {
  const auto count = [](dim3 d) { return uint64_t{d.x} * d.y * d.z; };
  if (count(launch.block) == 0 || count(launch.block) > 1024) fail("a block needs 1 to 1024 threads");
  if (launch.grid.y > 65535 || launch.grid.z > 65535) fail("a grid has at most 65535 blocks along y and z");
  if (launch.grid.x % launch.cluster_size != 0) fail("the grid is not a whole number of clusters");
  if (launch.cluster_size > 1 && capability_major() < 9) fail("clusters need capability 9.0");
  if (launch.cluster_size > 8) fail("a portable cluster has at most 8 blocks");
}

// Runs those of the fibers that wait for nothing, each until it does; false where there were none.
bool run_ready(const size_t* begin, const size_t* end) {
  bool any = false;
  for (; begin != end; ++begin) {
    running = &cluster->fibers[*begin];
    if (running->wait != Wait::kNothing) continue;
    any = true;
    threadIdx = running->thread;
    blockIdx = running->block;
    swapcontext(&scheduler, &running->context);
    if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
  }
  return any;
}

void run_cluster(const Launch& launch, const std::function<void()>& body, uint3 first_block, const std::string& order) {
  const size_t block_size = size_t{launch.block.x} * launch.block.y * launch.block.z;
  Cluster own;
  own.launch = &launch;
  own.body = &body;
  own.copies_land_at_once = order != "forward";
  own.blocks = std::vector<Block>(launch.cluster_size);
  own.fibers = std::vector<Fiber>(launch.cluster_size * block_size);
  cluster = &own;
  blockDim = launch.block;
  gridDim = launch.grid;
  for (Block& block : own.blocks) {
    block.warps.resize((block_size + 31) / 32);
    const size_t bytes = launch.shared_bytes + 2 * kGuardBytes + 128;
    block.memory.reset(new unsigned char[bytes]);
    memset(block.memory.get(), kGuard, bytes);
    const auto address = reinterpret_cast<uintptr_t>(block.memory.get()) + kGuardBytes;
    block.shared = reinterpret_cast<unsigned char*>((address + 127) / 128 * 128);
    memset(block.shared, kUndefined, launch.shared_bytes);
  }
  std::vector<size_t> sequence(own.fibers.size());
  std::iota(sequence.begin(), sequence.end(), size_t{0});
  if (order == "backward") std::reverse(sequence.begin(), sequence.end());
  std::mt19937 generator(first_block.x);
  for (size_t i = 0; i < own.fibers.size(); ++i) {
    Fiber& fiber = own.fibers[i];
    fiber.rank_in_cluster = static_cast<unsigned>(i / block_size);
    const auto index = static_cast<unsigned>(i % block_size);
    fiber.index_in_block = index;
    fiber.block = {first_block.x + fiber.rank_in_cluster, first_block.y, first_block.z};
    fiber.thread = {index % launch.block.x, index / launch.block.x % launch.block.y,
                    index / (launch.block.x * launch.block.y)};
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack(i);
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
  }
  while (release()) {
    if (order == "shuffled") std::shuffle(sequence.begin(), sequence.end(), generator);
    // A warp goes on for as long as it can before the next one starts, as far ahead as a missing barrier would let it.
    const auto warp_of = [&](size_t position) {
      const size_t i = sequence[position];
      return std::pair(i / block_size, i % block_size / 32);
    };
    for (size_t begin = 0, end = 0; begin < sequence.size(); begin = end) {
      while (end < sequence.size() && warp_of(end) == warp_of(begin)) ++end;
      while (run_ready(sequence.data() + begin, sequence.data() + end)) {
      }
    }
  }
  for (const Fiber& fiber : own.fibers) {
    if (fiber.wait != Wait::kDone) fail(name_of(fiber) + " waits for threads that never come");
  }
  for (const Block& block : own.blocks) {
    const auto intact = [](const unsigned char* guard) {
      return std::all_of(guard, guard + kGuardBytes, [](unsigned char byte) { return byte == kGuard; });
    };
    if (!intact(block.shared - kGuardBytes) || !intact(block.shared + launch.shared_bytes)) {
      fail("a write beyond the " + std::to_string(launch.shared_bytes) + " bytes of dynamic shared memory");
    }
  }
}

void perform(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    if (copy.in_bounds) {
      memcpy(copy.shared, copy.global, 16);
    } else {
      memset(copy.shared, 0, 16);
    }
  }
}

}  // namespace

void check_aligned(const void* p, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) fail(std::string(what) + ": an address that is not aligned to 16");
}

void run(const Launch& launch, const std::function<void()>& body) {
  check_launch(launch);
  const std::string order = setting("WEBSSL_EMULATED_ORDER", "forward");
  if (order != "forward" && order != "backward" && order != "shuffled") fail("unknown thread order " + order);
  const uint64_t row = launch.grid.x / launch.cluster_size, plane = row * launch.grid.y;
  const uint64_t num_clusters = plane * launch.grid.z;
  for (uint64_t i = 0; i < num_clusters; ++i) {
    const uint64_t index = order == "backward" ? num_clusters - 1 - i : i;
    const uint3 first_block{static_cast<unsigned>(index % row) * launch.cluster_size,
                            static_cast<unsigned>(index / row % launch.grid.y), static_cast<unsigned>(index / plane)};
    run_cluster(launch, body, first_block, order);
  }
}

int lane() { return static_cast<int>(running->index_in_block % 32); }
int capability_major() { return atoi(setting("WEBSSL_EMULATED_CAPABILITY", "90").c_str()) / 10; }
void* dynamic_shared_memory() { return own_block().shared; }

void block_barrier() { suspend(Wait::kBlock); }

void warp_barrier(unsigned mask) {
  call_with_warp(mask, [](unsigned, void* const*) {}, nullptr);
}

uint32_t cluster_rank() { return running->rank_in_cluster; }
uint32_t cluster_size() { return static_cast<uint32_t>(cluster->blocks.size()); }
void cluster_barrier() { suspend(Wait::kCluster); }

void* cluster_map(void* shared, uint32_t rank) {
  if (rank >= cluster->blocks.size()) fail("no block " + std::to_string(rank) + " in the cluster");
  const auto offset = static_cast<unsigned char*>(shared) - own_block().shared;
  if (offset < 0 || static_cast<size_t>(offset) > cluster->launch->shared_bytes) {
    fail("cluster_map takes an address of the block's own dynamic shared memory");
  }
  return cluster->blocks[rank].shared + offset;
}

void call_with_warp(unsigned mask, WarpFunction apply, void* data) {
  const unsigned bit = 1u << lane();
  const size_t block_size = cluster->fibers.size() / cluster->blocks.size();
  const size_t begin = running->index_in_block / 32 * 32;
  const size_t num_lanes = std::min<size_t>(32, block_size - begin);
  if (num_lanes < 32) mask &= (1u << num_lanes) - 1;  // a warp that the block does not fill
  if (!(mask & bit)) fail(name_of(*running) + " calls a function of its warp with a mask that leaves it out");
  auto& meetings = own_warp().meetings;
  auto meeting = std::find_if(meetings.begin(), meetings.end(), [&](const Meeting& m) { return m.mask == mask; });
  if (meeting == meetings.end()) meeting = meetings.insert(meetings.end(), Meeting{mask, 0, apply, {}});
  if (meeting->apply != apply) fail(name_of(*running) + " and others of its warp call different functions");
  meeting->arrived |= bit;
  meeting->data_of_lane[lane()] = data;
  if (meeting->arrived != mask) return suspend(Wait::kWarp);
  const Meeting complete = *meeting;
  meetings.erase(meeting);
  complete.apply(mask, complete.data_of_lane);
  Fiber* const warp = &cluster->fibers[running->rank_in_cluster * block_size + begin];
  for (size_t i = 0; i < num_lanes; ++i) {
    if (mask >> i & 1) warp[i].wait = Wait::kNothing;
  }
}

unsigned ballot(unsigned mask, bool predicate) {
  struct Data {
    bool predicate;
    unsigned result;
  } data{predicate, 0};
  call_with_warp(
      mask,
      [](unsigned mask, void* const* lanes) {
        unsigned result = 0;
        for (int i = 0; i < 32; ++i) {
          if (mask >> i & 1 && static_cast<Data*>(lanes[i])->predicate) result |= 1u << i;
        }
        for (int i = 0; i < 32; ++i) {
          if (mask >> i & 1) static_cast<Data*>(lanes[i])->result = result;
        }
      },
      &data);
  return data.result;
}

void async_copy_16(void* shared, const void* global, bool in_bounds) {
  check_aligned(shared, "asynchronous copy");
  if (in_bounds) check_aligned(global, "asynchronous copy");
  const Copy copy{shared, global, in_bounds};
  if (cluster->copies_land_at_once) return perform({copy});
  running->open_copies.push_back(copy);
}

void async_copy_commit() { running->groups.push_back(std::exchange(running->open_copies, {})); }

void async_copy_wait(int num_pending) {
  while (running->groups.size() > static_cast<size_t>(num_pending)) {
    perform(running->groups.front());
    running->groups.pop_front();
  }
}

}  // namespace cuda_on_host
