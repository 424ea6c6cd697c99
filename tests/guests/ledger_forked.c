/* The ledger with a child, so that a frame waits for the memory that both have in common. */
#define LEDGER_CHILD
#include "ledger.c"
