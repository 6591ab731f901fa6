#include "model/hf/sentencepiece.h"

#include <cstring>

#include "base/error.h"

namespace nibble {
namespace {

enum class Wire { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

/// The fields of one protobuf message, one after the other.
class Message {
 public:
  /// first_byte: where in the file the message begins, for errors.
  Message(std::string_view bytes, size_t first_byte) : bytes_(bytes), first_byte_(first_byte) {}

  /// Moves on to the next field; false behind the last.
  bool next() {
    if (at_ == bytes_.size()) return false;
    const uint64_t tag = varint();
    number_ = tag >> 3;
    wire_ = static_cast<Wire>(tag & 7);
    check(number_ > 0, "byte offset ", offset(), ": a field without a number");
    switch (wire_) {
      case Wire::kVarint:
        integer_ = varint();
        return true;
      case Wire::kFixed64:
        value_ = take(8);
        return true;
      case Wire::kBytes:
        value_ = take(varint());
        return true;
      case Wire::kFixed32:
        value_ = take(4);
        return true;
    }
    fail("byte offset ", offset(), ": field ", number_, " has no known wire type");
  }

  uint64_t number() const { return number_; }
  int64_t integer() const {
    require(Wire::kVarint);
    return static_cast<int64_t>(integer_);
  }
  std::string_view text() const {
    require(Wire::kBytes);
    return value_;
  }
  float number32() const {
    require(Wire::kFixed32);
    float x;
    std::memcpy(&x, value_.data(), sizeof x);
    return x;
  }
  Message message() const {
    require(Wire::kBytes);
    return {value_, offset() - value_.size()};
  }

 private:
  size_t offset() const { return first_byte_ + at_; }

  void require(Wire wire) const {
    check(wire_ == wire, "byte offset ", offset(), ": field ", number_, " is of another kind");
  }

  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      check(at_ < bytes_.size(), "byte offset ", offset(), ": the message ends inside a number");
      const auto byte = static_cast<unsigned char>(bytes_[at_++]);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    fail("byte offset ", offset(), ": a number of more than 64 bits");
  }

  std::string_view take(uint64_t size) {
    check(size <= bytes_.size() - at_, "byte offset ", offset(), ": a field of ", size,
          " bytes, the message has ", bytes_.size() - at_, " left");
    const std::string_view taken = bytes_.substr(at_, size);
    at_ += size;
    return taken;
  }

  std::string_view bytes_;
  size_t first_byte_, at_ = 0;
  uint64_t number_ = 0, integer_ = 0;
  Wire wire_ = Wire::kVarint;
  std::string_view value_;
};

SentencePiece parse_piece(Message fields) {
  SentencePiece piece;
  while (fields.next()) {
    if (fields.number() == 1) piece.text = fields.text();
    if (fields.number() == 2) piece.score = fields.number32();
    if (fields.number() == 3) piece.type = fields.integer();
  }
  check(piece.type >= 1 && piece.type <= 6, "piece '", piece.text, "' has the unknown type ",
        piece.type);
  return piece;
}

void parse_trainer(Message fields, SentencePieceModel& model) {
  while (fields.next()) {
    if (fields.number() == 3) model.model_type = fields.integer();
    if (fields.number() == 24) model.spaces_are_suffixes = fields.integer() != 0;
    if (fields.number() == 35) model.byte_fallback = fields.integer() != 0;
  }
}

void parse_normalizer(Message fields, SentencePieceModel& model) {
  while (fields.next()) {
    if (fields.number() == 2) model.character_map = fields.text();
    if (fields.number() == 3) model.adds_space = fields.integer() != 0;
    if (fields.number() == 4) model.merges_spaces = fields.integer() != 0;
    if (fields.number() == 5) model.escapes_spaces = fields.integer() != 0;
  }
}

}  // namespace

SentencePieceModel parse_sentencepiece(std::string_view bytes) {
  SentencePieceModel model;
  Message fields(bytes, 0);
  while (fields.next()) {
    if (fields.number() == 1) model.pieces.push_back(parse_piece(fields.message()));
    if (fields.number() == 2) parse_trainer(fields.message(), model);
    if (fields.number() == 3) parse_normalizer(fields.message(), model);
  }
  check(!model.pieces.empty(), "holds no pieces: this is no sentencepiece model");
  return model;
}

}  // namespace nibble
