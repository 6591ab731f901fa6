// The allocator's habits, for a process that allocates the same gigabytes in every step.
#pragma once

namespace nibble {

/// Lets freed memory stay with the process instead of going back to the system. Each training step
/// frees its gradients, activations and logits and allocates them again; fetching zeroed pages for
/// them anew took a tenth of a step (SmolLM2, 1,024 tokens, 2 cores). For the whole process; does
/// nothing without glibc.
void keep_freed_memory();

/// Gives it back once, when the training is over: what follows maps files, and needs less.
void give_back_freed_memory();

}  // namespace nibble
