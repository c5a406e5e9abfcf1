// A list of types, to instantiate each kernel for each of them.
#pragma once

namespace fusestep {

template <class... Ts>
struct TypeList {
  static constexpr int size = sizeof...(Ts);
};

// Calls visit(TypeList<T>{}) for each T in order.
template <class... Ts, class Visit>
constexpr void for_each_type(TypeList<Ts...>, Visit&& visit) {
  (visit(TypeList<Ts>{}), ...);
}

namespace detail {
template <class... Lists>
struct Concat;
template <>
struct Concat<> {
  using type = TypeList<>;
};
template <class... Ts>
struct Concat<TypeList<Ts...>> {
  using type = TypeList<Ts...>;
};
template <class... As, class... Bs, class... Rest>
struct Concat<TypeList<As...>, TypeList<Bs...>, Rest...> : Concat<TypeList<As..., Bs...>, Rest...> {};
}  // namespace detail

template <class... Lists>
using concat = typename detail::Concat<Lists...>::type;

}  // namespace fusestep
