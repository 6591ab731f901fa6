// Sixteen bytes of a block in four words, from which lanes of 32 bits take theirs by shifts that
// the compiler can see: loops over bytes themselves vectorize half as well.
#pragma once

#include "quant/format/lanes.h"
#include "quant/format/packing.h"

namespace nibble {

struct ChunkBytes {
  uint32_t words[4];

  /// Byte k, in the low 8 bits of what may have more above.
  NIBBLE_HD uint32_t from(int k) const {
    const uint32_t low = k & 4 ? words[1] : words[0], high = k & 4 ? words[3] : words[2];
    return (k & 8 ? high : low) >> 8 * (k & 3);
  }
};

NIBBLE_HD ChunkBytes load_chunk(const uint8_t* bytes) {
  return {{load_word(bytes), load_word(bytes + 4), load_word(bytes + 8), load_word(bytes + 12)}};
}

}  // namespace nibble
