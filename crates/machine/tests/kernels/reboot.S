# Resets the machine twice through port 0xcf9; memory at 0x600 survives and
# counts. Ends with 3, or with 1 if the serial port's scratch register was not
# reset, or if its own data was not loaded again.
	.include "common.inc"
	multiboot_header
	.globl	_start
_start:	cmpl	$0x12345678, data
	jne	bad
	movw	$COM1 + 7, %dx
	inb	%dx, %al
	testb	%al, %al
	jnz	bad
	movb	$0x5a, %al
	outb	%al, %dx
	movl	$0, data
	incl	0x600
	cmpl	$3, 0x600
	je	done
	movw	$0xcf9, %dx
	movb	$6, %al
	outb	%al, %dx
1:	jmp	1b
done:	exit	3
bad:	exit	1
	.balign	4
data:	.long	0x12345678
