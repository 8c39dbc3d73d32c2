// Messages of 16 bytes between the blocks of a cluster (sm_90 and up): a mailbox counts the bytes that have arrived, so
// that whoever waits for them needs no barrier of the whole cluster, whose fence would wait for all of a thread's
// memory accesses. The emulation waits at such a barrier.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "core/cluster.cuh"

namespace webssl {

// An mbarrier in dynamic shared memory, with one phase after the other.
struct Mailbox {
  uint64_t state;
};

#if !defined(WEBSSL_CUDA_ON_HOST) && defined(__CUDA_ARCH__)
__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
#endif

// By one thread of the block; the others may use it after a barrier of the cluster.
__device__ __forceinline__ void mailbox_init(Mailbox* mailbox) {
#if defined(WEBSSL_CUDA_ON_HOST)
  mailbox->state = 0;
#elif __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(shared_address(mailbox))
      : "memory");
#else
  __trap();
#endif
}

// By one thread of the block, once a phase: how many bytes complete it. They may have arrived before.
__device__ __forceinline__ void mailbox_expect(Mailbox* mailbox, uint32_t num_bytes) {
#if defined(WEBSSL_CUDA_ON_HOST)
  (void)mailbox, (void)num_bytes;
#elif __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(mailbox)), "r"(num_bytes)
               : "memory");
#else
  __trap();
#endif
}

// Writes 16 bytes to `to`, and counts them in `mailbox`, both as they lie in this block, but in the block `rank`.
template <typename T>
__device__ __forceinline__ void mailbox_send(T* to, const T& message, Mailbox* mailbox, uint32_t rank) {
  static_assert(sizeof(T) == 16);
#if defined(WEBSSL_CUDA_ON_HOST)
  (void)mailbox;
  *cluster_map(to, rank) = message;
#elif __CUDA_ARCH__ >= 900
  uint32_t words[4];
  memcpy(words, &message, sizeof(words));
  asm volatile(
      "{\n.reg .b32 to, mailbox;\n"
      "mapa.shared::cluster.u32 to, %0, %6;\n"
      "mapa.shared::cluster.u32 mailbox, %1, %6;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [to], {%2, %3, %4, %5}, [mailbox];\n}" ::"r"(
          shared_address(to)),
      "r"(shared_address(mailbox)), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(rank)
      : "memory");
#else
  __trap();
#endif
}

// Waits for the end of a phase, of parity 0, 1, 0, ...; what was sent in it is then visible to the thread. In the
// emulation by all threads of the cluster.
__device__ __forceinline__ void mailbox_wait(const Mailbox* mailbox, uint32_t parity) {
#if defined(WEBSSL_CUDA_ON_HOST)
  (void)mailbox, (void)parity;
  cuda_on_host::cluster_barrier();
#elif __CUDA_ARCH__ >= 900
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred done;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n}"
        : "=r"(done)
        : "r"(shared_address(mailbox)), "r"(parity)
        : "memory");
  } while (!done);
#else
  __trap();
#endif
}

}  // namespace webssl
