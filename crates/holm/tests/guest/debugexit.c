/* Writes its argument to the debug-exit port, as test kernels do. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/io.h>

int main(int count, char **arguments) {
  if (count != 2 || iopl(3)) return 1;
  outb(atoi(arguments[1]), 0xf4);
  return 0;
}
