# Halts for ever, with interrupts off.
	.include "common.inc"
	multiboot_header
	.globl	_start
_start:	cli
1:	hlt
	jmp	1b
