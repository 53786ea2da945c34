# Ten ticks of the 8254 through the 8259 pair, halting in between.
	.include "common.inc"
	multiboot_header
	.globl	_start
_start:	cli
	movl	$stack, %esp
	lgdt	gdt_pointer
	ljmp	$8, $1f
1:	movw	$16, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	# Interrupt gates: vector 0x20 counts, all others end with an error.
	movl	$idt, %edi
	movl	$256, %ecx
2:	movl	$unexpected, %eax
	call	gate
	loop	2b
	movl	$idt + 0x20 * 8, %edi
	movl	$tick, %eax
	call	gate
	lidt	idt_pointer
	# 8259 pair: vectors 0x20 and 0x28, only IRQ 0 open.
	.irp	port_value, 0x2011, 0xa011, 0x2120, 0xa128, 0x2104, 0xa102, 0x2101, 0xa101, 0x21fe, 0xa1ff
	movb	$\port_value & 0xff, %al
	outb	%al, $\port_value >> 8
	.endr
	# 8254 channel 0: rate generator, 1000 Hz.
	movb	$0x34, %al
	outb	%al, $0x43
	movb	$0xa9, %al
	outb	%al, $0x40
	movb	$0x04, %al
	outb	%al, $0x40
	sti
3:	hlt
	cmpl	$10, ticks
	jb	3b
	cli
	movl	$text, %esi
	call	puts
	exit	0x10
gate:	movw	%ax, (%edi)
	movw	$8, 2(%edi)
	movw	$0x8e00, 4(%edi)
	shrl	$16, %eax
	movw	%ax, 6(%edi)
	addl	$8, %edi
	ret
tick:	incl	ticks
	pushl	%eax
	movb	$0x20, %al
	outb	%al, $0x20
	popl	%eax
	iretl
unexpected:
	exit	1
puts:	puts_body %esi
text:	.asciz	"ten ticks\n"
	.balign	8
gdt:	.quad	0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
	.word	. - gdt - 1
	.long	gdt
idt_pointer:
	.word	256 * 8 - 1
	.long	idt
	.bss
	.balign	8
idt:	.skip	256 * 8
ticks:	.skip	4
	.skip	4096
stack:
