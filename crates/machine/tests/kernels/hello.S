# Says hello and its command line on the serial port, then ends with 0x21.
	.include "common.inc"
	multiboot_header
	.globl	_start
_start:	movl	$stack, %esp
	cmpl	$0x2badb002, %eax
	jne	bad
	movl	16(%ebx), %edi
	movl	$text, %esi
	call	puts
	movl	%edi, %esi
	call	puts
	movl	$newline, %esi
	call	puts
	exit	0x21
bad:	exit	1
puts:	puts_body %esi
text:	.asciz	"hello from "
newline: .asciz	"\n"
	.bss
	.skip	4096
stack:
