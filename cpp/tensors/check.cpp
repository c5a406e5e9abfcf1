#include "tensors/check.h"

namespace fusestep {

namespace {

std::string sentence(const Argument& argument, const std::string& expected, const std::string& got,
                     const std::string& remedy) {
  std::string text =
      std::string(argument.operation) + ": " + argument.path() + ": expected " + expected + ", got " + got;
  return remedy.empty() ? text : text + ". " + remedy;
}

}  // namespace

std::string Argument::path() const {
  std::string text;
  if (group >= 0) text.append("groups[").append(std::to_string(group)).append("].");
  text += name;
  if (index >= 0) text.append("[").append(std::to_string(index)).append("]");
  return text;
}

void refuse_value(const Argument& argument, const std::string& expected, const std::string& got,
                  const std::string& remedy) {
  throw std::invalid_argument(sentence(argument, expected, got, remedy));
}

void refuse_type(const Argument& argument, const std::string& expected, const std::string& got,
                 const std::string& remedy) {
  throw WrongType(sentence(argument, expected, got, remedy));
}

}  // namespace fusestep
