# Never ends by itself.
	.include "common.inc"
	multiboot_header
	.globl	_start
_start:	cli
1:	jmp	1b
