# Starts the watchdog, pings it many times, and then no more. Ends with 4 once it
# has expired, with 1 if that was too early; with 5 if it had expired before the start.
	.include "common.inc"
	.set	WATCHDOG, 0x620
	multiboot_header
	.globl	_start
_start:	movw	$WATCHDOG + 1, %dx
	inb	%dx, %al
	testb	%al, %al
	jnz	before
	movw	$WATCHDOG + 4, %dx
	movl	$600, %eax
	outl	%eax, %dx
	movw	$WATCHDOG, %dx
	movb	$1, %al
	outb	%al, %dx
	# A ping loads the count anew: 200 of them, and it counts from the last.
	movl	$200, %ecx
1:	movw	$WATCHDOG + 2, %dx
	outb	%al, %dx
	movw	$WATCHDOG + 1, %dx
	inb	%dx, %al
	testb	%al, %al
	jnz	early
	loop	1b
	movw	$WATCHDOG + 4, %dx
	movl	$1, %eax
	outl	%eax, %dx
	movw	$WATCHDOG + 2, %dx
	outb	%al, %dx
	movw	$WATCHDOG + 1, %dx
2:	inb	%dx, %al
	testb	%al, %al
	jz	2b
	exit	4
early:	exit	1
before:	exit	5
