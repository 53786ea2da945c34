# Raises an exception without an interrupt table: a triple fault.
	.include "common.inc"
	multiboot_header
	.globl	_start
_start:	lidt	empty
	int3
	exit	1
empty:	.word	0
	.long	0
