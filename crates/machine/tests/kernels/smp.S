# Starts all processors by INIT and SIPI and has each add 100000 to a counter
# with locked instructions, in 64-bit mode. The command line's first character
# is the number of processors. Ends with 0x11, or with 1 if the sum is wrong.
	.include "common.inc"
	.set	LAPIC, 0xfee00000
	.set	TRAMPOLINE, 0x8000
	.set	ROUNDS, 100000
	multiboot_header
	.globl	_start
_start:	cli
	movl	$stack, %esp
	movl	16(%ebx), %eax
	movzbl	(%eax), %eax
	subl	$'0', %eax
	movl	%eax, expected
	# Identity-map 4 GiB with 2 MiB pages.
	movl	$pdpt + 3, pml4
	movl	$pd + 3, %eax
	movl	$pdpt, %edi
	movl	$4, %ecx
1:	movl	%eax, (%edi)
	addl	$0x1000, %eax
	addl	$8, %edi
	loop	1b
	movl	$0x83, %eax
	movl	$pd, %edi
	movl	$2048, %ecx
2:	movl	%eax, (%edi)
	addl	$0x200000, %eax
	addl	$8, %edi
	loop	2b
	# The trampoline goes below 1 MiB.
	movl	$trampoline, %esi
	movl	$TRAMPOLINE, %edi
	movl	$trampoline_end - trampoline, %ecx
	rep movsb
	movl	$bsp64, %ebx
	jmp	enter_long

# 32-bit code of all processors: to 64-bit mode, then to %ebx.
enter_long:
	lgdt	gdt_pointer
	movl	$0x20, %eax
	movl	%eax, %cr4
	movl	$pml4, %eax
	movl	%eax, %cr3
	movl	$0xc0000080, %ecx
	rdmsr
	orl	$0x100, %eax
	wrmsr
	movl	$0x80000011, %eax
	movl	%eax, %cr0
	ljmp	$8, $1f
	.code64
1:	xorl	%eax, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	%ebx, %ebx
	jmp	*%rbx

bsp64:	movl	$stack, %esp
	movl	$LAPIC, %ebp
	orl	$0x1ff, 0xf0(%rbp)
	# All but this one: INIT, then SIPI twice.
	movl	$0xc4500, 0x300(%rbp)
	call	delay
	movl	$0xc4600 | TRAMPOLINE >> 12, 0x300(%rbp)
	call	delay
	movl	$0xc4600 | TRAMPOLINE >> 12, 0x300(%rbp)
	call	work
	# Wait until all have finished, for a long time.
	movl	$2000000000, %ecx
3:	movl	finished(%rip), %eax
	cmpl	expected(%rip), %eax
	je	4f
	pause
	decl	%ecx
	jnz	3b
	jmp	bad
4:	movl	expected(%rip), %eax
	imull	$ROUNDS, %eax
	cmpl	%eax, sum(%rip)
	jne	bad
	movl	$text, %esi
	call	puts
	exit	0x11
bad:	exit	1

work:	movl	$ROUNDS, %ecx
5:	lock incl sum(%rip)
	decl	%ecx
	jnz	5b
	lock incl finished(%rip)
	ret

delay:	movl	$100000, %ecx
6:	pause
	decl	%ecx
	jnz	6b
	ret

ap64:	movl	$1, %eax
	lock xaddl %eax, started(%rip)
	shll	$10, %eax
	leal	ap_stacks(%rax), %esp
	addl	$1024, %esp
	call	work
7:	hlt
	jmp	7b
puts:	puts_body %rsi

	.code16
trampoline:
	cli
	xorw	%ax, %ax
	movw	%ax, %ds
	lgdtl	TRAMPOLINE + (trampoline_gdt_pointer - trampoline)
	movl	$0x11, %eax
	movl	%eax, %cr0
	ljmpl	$16, $TRAMPOLINE + (8f - trampoline)
	.code32
8:	movl	$24, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	$ap64, %ebx
	movl	$enter_long, %eax
	jmp	*%eax
	.balign	8
trampoline_gdt_pointer:
	.word	gdt_end - gdt - 1
	.long	gdt
trampoline_end:

text:	.asciz	"all processors counted\n"
	.balign	8
gdt:	.quad	0, 0x00af9b000000ffff, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_end:
gdt_pointer:
	.word	gdt_end - gdt - 1
	.long	gdt
	.bss
	.balign	4096
pml4:	.skip	4096
pdpt:	.skip	4096
pd:	.skip	4 * 4096
expected: .skip	4
finished: .skip	4
started: .skip	4
sum:	.skip	4
ap_stacks: .skip 64 * 1024
	.skip	4096
stack:
