/* diskload FILE MIB READS: writes MIB of a pattern to FILE and reads them, in
   blocks of 1 MiB, four at once; then READS random reads of 4 KiB, one and 32
   at once. All with O_DIRECT and Linux's native asynchronous I/O. */
#include "bench.h"
#include <fcntl.h>
#include <errno.h>
#include <sys/syscall.h>
#include <linux/aio_abi.h>
#define MOST 32
static aio_context_t ctx;
static struct iocb cbs[MOST];
static char*bufs[MOST];
static int fd;
static void die(const char*what){fprintf(stderr,"diskload: %s: %s\n",what,strerror(errno));exit(1);}
static void start(int slot,int op,size_t len,uint64_t at){
  struct iocb*c=&cbs[slot];memset(c,0,sizeof*c);
  c->aio_data=slot;c->aio_lio_opcode=op;c->aio_fildes=fd;
  c->aio_buf=(uintptr_t)bufs[slot];c->aio_nbytes=len;c->aio_offset=at;
  if(syscall(SYS_io_submit,ctx,1,&c)!=1)die("io_submit");}
/* Count blocks, depth at once; a sum over what was read. */
static uint64_t run(int op,size_t len,uint64_t count,int depth,int random,uint64_t blocks){
  uint64_t seed=88172645463325252ull,next=0,done=0,sum=0;
  struct io_event events[MOST];
  int idle[MOST],idles=0;
  for(int i=0;i<depth;i++)idle[idles++]=i;
  while(done<count){
    while(idles&&next<count){
      int slot=idle[--idles];
      uint64_t block=random?rng(&seed)%blocks:next;
      if(op==IOCB_CMD_PWRITE)for(size_t i=0;i<len;i+=4096){uint64_t v=(block*len+i)*0x9e3779b97f4a7c15ull;memcpy(bufs[slot]+i,&v,8);}
      start(slot,op,len,block*len);next++;}
    long n=syscall(SYS_io_getevents,ctx,1,MOST,events,NULL);
    if(n<1){if(errno==EINTR)continue;die("io_getevents");}
    for(long e=0;e<n;e++){
      if(events[e].res!=(int64_t)len){errno=EIO;die("I/O");}
      int slot=events[e].data;
      if(op==IOCB_CMD_PREAD)for(size_t i=0;i<len;i+=4096){uint64_t v;memcpy(&v,bufs[slot]+i,8);sum+=v;}
      idle[idles++]=slot;done++;}}
  return sum;}
int main(int c,char**v){
  if(c!=4)return 2;
  uint64_t mib=atoll(v[2]),reads=atoll(v[3]);
  fd=open(v[1],O_RDWR|O_DIRECT);
  if(fd<0)die(v[1]);
  if(syscall(SYS_io_setup,MOST,&ctx))die("io_setup");
  for(int i=0;i<MOST;i++){if(posix_memalign((void**)&bufs[i],4096,1<<20))return 1;memset(bufs[i],i,1<<20);}
  double t=now();run(IOCB_CMD_PWRITE,1<<20,mib,4,0,0);if(fsync(fd))die("fsync");
  report("disk_write_1M",(now()-t)*1024/mib,mib);
  t=now();uint64_t s=run(IOCB_CMD_PREAD,1<<20,mib,4,0,0);
  report("disk_read_1M",(now()-t)*1024/mib,s);
  t=now();s=run(IOCB_CMD_PREAD,4096,reads,1,1,mib*256);
  report("disk_read_4k_1",(now()-t)*10000/reads,s);
  t=now();s=run(IOCB_CMD_PREAD,4096,reads*4,32,1,mib*256);
  report("disk_read_4k_32",(now()-t)*10000/(reads*4),s);
  return 0;}
