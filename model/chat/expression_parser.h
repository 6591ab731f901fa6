// The expressions of a chat template, loosest operators first.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "model/chat/nodes.h"
#include "model/chat/token_stream.h"

namespace nibble::jinja {

class ExpressionParser : public TokenStream {
 public:
  using TokenStream::TokenStream;

  /// One expression, or several with commas, which are a list.
  ExpressionPointer parse_tuple(bool with_conditional = true);
  ExpressionPointer parse_expression();

 private:
  bool ends_tuple() const;
  ExpressionPointer binary(std::string name, ExpressionPointer left, ExpressionPointer right);
  /// Operands of one precedence, from the left.
  template <class Next>
  ExpressionPointer parse_chain(std::initializer_list<std::string_view> names, const Next& next);
  ExpressionPointer parse_or();
  ExpressionPointer parse_and();
  ExpressionPointer parse_not();
  /// The comparison that comes here, taken; "" where none does.
  std::string take_comparison();
  ExpressionPointer parse_comparison();
  ExpressionPointer parse_sum();
  ExpressionPointer parse_concatenation();
  ExpressionPointer parse_product();
  ExpressionPointer parse_power();
  ExpressionPointer parse_unary(bool with_filters);

  ExpressionPointer literal(Value value);
  ExpressionPointer parse_primary();
  ExpressionPointer parse_name();
  int64_t parse_integer();
  ExpressionPointer parse_bracket();
  ExpressionPointer parse_list();
  ExpressionPointer parse_dict();

  /// How many operators may follow one value: each is a level of the tree.
  void count_link(int& links) const;
  ExpressionPointer parse_postfix(ExpressionPointer value);
  ExpressionPointer parse_subscript(ExpressionPointer object);
  CallArguments parse_arguments();
  ExpressionPointer parse_filters(ExpressionPointer value);
  ExpressionPointer parse_test(ExpressionPointer value);
  /// Whether what follows a test's name is its argument ("is divisibleby 3").
  bool begins_argument() const;
};

}  // namespace nibble::jinja
