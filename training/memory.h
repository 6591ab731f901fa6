// The allocator's habits, for a process that allocates the same gigabytes in every step.
#pragma once

namespace nibble {

/// Lets the memory of freed small blocks stay with the process instead of going back to the system:
/// each training step allocates them again, and fetching zeroed pages for all anew took a tenth of
/// a step (SmolLM2, 1,024 tokens, 2 cores). Blocks of 2 MiB and more do go back: kept too, they
/// left holes of 0.2 GB (scales alone) to 0.5 GB (lora) for 0 to 3 % of speed. For the whole
/// process; does nothing without glibc.
void keep_freed_memory();

/// Gives it back once: before the training what led to it took, and afterwards, as what follows
/// maps files and needs less.
void give_back_freed_memory();

}  // namespace nibble
