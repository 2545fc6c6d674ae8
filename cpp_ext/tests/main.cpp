#include "check.hpp"

int failures = 0;

int main() {
    test_core();
    test_crystal_graph();
    test_graph();
    test_operations();
    std::printf("%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
