#include "model/chat/expression_parser.h"

#include <algorithm>
#include <charconv>

namespace nibble::jinja {

ExpressionPointer ExpressionParser::parse_tuple(bool with_conditional) {
  const auto one = [&] { return with_conditional ? parse_expression() : parse_or(); };
  ExpressionPointer first = one();
  if (!sees_operator(",")) return first;
  auto list = make<ListLiteral>();
  list->items.push_back(std::move(first));
  while (skip_operator(","))
    if (!ends_tuple()) list->items.push_back(one());
  return list;
}

bool ExpressionParser::ends_tuple() const {
  return token().kind == TokenKind::kBlockEnd || token().kind == TokenKind::kVariableEnd ||
         sees_operator(")");
}

ExpressionPointer ExpressionParser::parse_expression() {
  const Level level(*this);
  ExpressionPointer value = parse_or();
  for (int links = 0; sees_word("if"); count_link(links)) {
    auto node = make<Conditional>();
    take();
    node->then = std::move(value);
    node->condition = parse_or();
    if (skip_word("else")) node->otherwise = parse_expression();
    value = std::move(node);
  }
  return value;
}

ExpressionPointer ExpressionParser::binary(std::string name, ExpressionPointer left,
                                           ExpressionPointer right) {
  auto node = make<Binary>();
  node->name = std::move(name);
  node->left = std::move(left);
  node->right = std::move(right);
  return node;
}

template <class Next>
ExpressionPointer ExpressionParser::parse_chain(std::initializer_list<std::string_view> names,
                                                const Next& next) {
  const auto sees_one = [&] {
    return std::any_of(names.begin(), names.end(), [&](std::string_view name) {
      return sees_operator(name) || sees_word(name);
    });
  };
  ExpressionPointer left = next();
  for (int links = 0; sees_one(); count_link(links)) {
    std::string name = take().text;
    left = binary(std::move(name), std::move(left), next());
  }
  return left;
}

ExpressionPointer ExpressionParser::parse_or() {
  return parse_chain({"or"}, [&] { return parse_and(); });
}

ExpressionPointer ExpressionParser::parse_and() {
  return parse_chain({"and"}, [&] { return parse_not(); });
}

ExpressionPointer ExpressionParser::parse_not() {
  const Level level(*this);
  if (!sees_word("not")) return parse_comparison();
  auto node = make<Unary>();
  node->name = take().text;
  node->operand = parse_not();
  return node;
}

std::string ExpressionParser::take_comparison() {
  for (const std::string_view name : {"==", "!=", "<", "<=", ">", ">="})
    if (skip_operator(name)) return std::string(name);
  if (skip_word("in")) return "in";
  if (!sees_word("not") || !sees(TokenKind::kName, "in", 1)) return "";
  take();
  take();
  return "not in";
}

ExpressionPointer ExpressionParser::parse_comparison() {
  ExpressionPointer first = parse_sum();
  std::string name = take_comparison();
  if (name.empty()) return first;
  auto node = make<Comparison>();
  node->first = std::move(first);
  for (; !name.empty(); name = take_comparison()) node->rest.emplace_back(name, parse_sum());
  return node;
}

ExpressionPointer ExpressionParser::parse_sum() {
  return parse_chain({"+", "-"}, [&] { return parse_concatenation(); });
}

ExpressionPointer ExpressionParser::parse_concatenation() {
  return parse_chain({"~"}, [&] { return parse_product(); });
}

ExpressionPointer ExpressionParser::parse_product() {
  return parse_chain({"*", "/", "//", "%"}, [&] { return parse_power(); });
}

ExpressionPointer ExpressionParser::parse_power() {
  return parse_chain({"**"}, [&] { return parse_unary(true); });
}

ExpressionPointer ExpressionParser::parse_unary(bool with_filters) {
  const Level level(*this);
  ExpressionPointer value;
  if (sees_operator("-") || sees_operator("+")) {
    auto node = make<Unary>();
    node->name = take().text;
    node->operand = parse_unary(false);
    value = std::move(node);
  } else {
    value = parse_primary();
  }
  value = parse_postfix(std::move(value));
  return with_filters ? parse_filters(std::move(value)) : std::move(value);
}

ExpressionPointer ExpressionParser::literal(Value value) {
  auto node = make<Literal>();
  node->value = std::move(value);
  return node;
}

ExpressionPointer ExpressionParser::parse_primary() {
  switch (token().kind) {
    case TokenKind::kName:
      return parse_name();
    case TokenKind::kInteger:
      return literal(parse_integer());
    case TokenKind::kFloat:
      return literal(std::stod(take().text));
    case TokenKind::kString: {
      std::string text;
      while (token().kind == TokenKind::kString) text += take().text;
      return literal(std::move(text));
    }
    default:
      break;
  }
  if (skip_operator("(")) return parse_bracket();
  if (skip_operator("[")) return parse_list();
  if (skip_operator("{")) return parse_dict();
  refuse("wants an expression, found ", describe());
}

ExpressionPointer ExpressionParser::parse_name() {
  const std::string name = token().text;
  if (name == "true" || name == "True") return take(), literal(true);
  if (name == "false" || name == "False") return take(), literal(false);
  if (name == "none" || name == "None") return take(), literal(None{});
  auto node = make<Name>();
  node->name = take().text;
  return node;
}

int64_t ExpressionParser::parse_integer() {
  const std::string text = take().text;
  int64_t value = 0;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), value);
  if (end.ec != std::errc()) refuse("the number ", text, " is too large");
  return value;
}

ExpressionPointer ExpressionParser::parse_bracket() {
  if (skip_operator(")")) return make<ListLiteral>();
  ExpressionPointer value = parse_tuple();
  expect_operator(")");
  return value;
}

ExpressionPointer ExpressionParser::parse_list() {
  auto node = make<ListLiteral>();
  while (!skip_operator("]")) {
    if (!node->items.empty()) expect_operator(",");
    if (!sees_operator("]")) node->items.push_back(parse_expression());
  }
  return node;
}

ExpressionPointer ExpressionParser::parse_dict() {
  auto node = make<DictLiteral>();
  while (!skip_operator("}")) {
    if (!node->entries.empty()) expect_operator(",");
    if (sees_operator("}")) continue;
    ExpressionPointer key = parse_expression();
    expect_operator(":");
    node->entries.emplace_back(std::move(key), parse_expression());
  }
  return node;
}

void ExpressionParser::count_link(int& links) const {
  if (++links > kMaxDepth) refuse("more than ", kMaxDepth, " operators after one value");
}

ExpressionPointer ExpressionParser::parse_postfix(ExpressionPointer value) {
  for (int links = 0;; count_link(links)) {
    if (skip_operator(".")) {
      auto node = make<Member>();
      node->attribute = token().kind == TokenKind::kName;
      if (node->attribute)
        node->index = literal(take().text);
      else if (token().kind == TokenKind::kInteger)
        node->index = literal(parse_integer());
      else
        refuse("wants a name after '.', found ", describe());
      node->object = std::move(value);
      value = std::move(node);
    } else if (skip_operator("[")) {
      value = parse_subscript(std::move(value));
    } else if (sees_operator("(")) {
      auto node = make<Call>();
      node->function = std::move(value);
      node->arguments = parse_arguments();
      value = std::move(node);
    } else {
      return value;
    }
  }
}

ExpressionPointer ExpressionParser::parse_subscript(ExpressionPointer object) {
  const auto part = [&]() -> ExpressionPointer {
    return sees_operator(":") || sees_operator("]") ? nullptr : parse_expression();
  };
  ExpressionPointer begin = part();
  if (!sees_operator(":")) {
    if (!begin) refuse("wants an index, found ", describe());
    auto node = make<Member>();
    node->object = std::move(object);
    node->index = std::move(begin);
    expect_operator("]");
    return node;
  }
  auto node = make<Slice>();
  node->object = std::move(object);
  node->begin = std::move(begin);
  take();
  node->end = part();
  if (skip_operator(":")) node->step = part();
  expect_operator("]");
  return node;
}

CallArguments ExpressionParser::parse_arguments() {
  CallArguments arguments;
  expect_operator("(");
  for (bool first = true; !skip_operator(")"); first = false) {
    if (!first) expect_operator(",");
    if (sees_operator(")")) continue;
    if (sees_operator("*") || sees_operator("**"))
      refuse("arguments with '", token().text, "' are not known to nibble's template engine");
    if (token().kind == TokenKind::kName && sees(TokenKind::kOperator, "=", 1)) {
      std::string name = take().text;
      take();
      arguments.named.emplace_back(std::move(name), parse_expression());
    } else {
      arguments.positional.push_back(parse_expression());
    }
  }
  return arguments;
}

ExpressionPointer ExpressionParser::parse_filters(ExpressionPointer value) {
  for (int links = 0;; count_link(links)) {
    if (skip_operator("|")) {
      auto node = make<Filter>();
      node->name = expect_name();
      node->value = std::move(value);
      if (sees_operator("(")) node->arguments = parse_arguments();
      value = std::move(node);
    } else if (skip_word("is")) {
      value = parse_test(std::move(value));
    } else if (sees_operator("(")) {
      value = parse_postfix(std::move(value));
    } else {
      return value;
    }
  }
}

ExpressionPointer ExpressionParser::parse_test(ExpressionPointer value) {
  auto node = make<Test>();
  node->negated = skip_word("not");
  node->name = expect_name();
  node->value = std::move(value);
  if (sees_operator("("))
    node->arguments = parse_arguments();
  else if (begins_argument())
    node->arguments.positional.push_back(parse_postfix(parse_primary()));
  return node;
}

bool ExpressionParser::begins_argument() const {
  if (token().kind == TokenKind::kName)
    return !sees_word("else") && !sees_word("or") && !sees_word("and") && !sees_word("is") &&
           !sees_word("if") && !sees_word("not") && !sees_word("in");
  return token().kind == TokenKind::kInteger || token().kind == TokenKind::kFloat ||
         token().kind == TokenKind::kString || sees_operator("[") || sees_operator("{");
}

}  // namespace nibble::jinja
